"""The method: ED-LoRA training, gradient fusion, regional sampling and their measures.

In a notebook: ``mos.load_concept``, ``mos.load_fused`` and ``mos.apply`` on an ordinary diffusers pipeline.
They are loaded when first used; importing ``mos`` alone needs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mos.formats.pipeline import Applied, Concept, apply, load_concept, load_fused
    from mos.models import load_adapter

__all__ = ["Applied", "Concept", "apply", "load_adapter", "load_concept", "load_fused"]


def __getattr__(name: str) -> Any:
    """Import the Python interface on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'mos' has no attribute {name!r}")
    if name == "load_adapter":
        from mos.models import load_adapter

        return load_adapter
    from mos.formats import pipeline

    return getattr(pipeline, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
