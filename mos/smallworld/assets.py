"""Where the shipped weights of the small world lie, and how to open them."""

from pathlib import Path

from safetensors.torch import load_file

from mos.errors import NotFoundError
from mos.smallworld.probe import Probe

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped weights: `base`, `scorer`, `probe`, and `record.json` with their digests."""


def base_path() -> Path:
    """Folder of the base, for `StableDiffusionPipeline.from_pretrained`."""
    return _existing("base", "model_index.json")


def scorer_path() -> Path:
    """Folder of the scorer, for `CLIPModel.from_pretrained`, with tokenizer and image processor."""
    return _existing("scorer", "config.json")


def load_probe(path: Path | None = None) -> Probe:
    """Open the attribute probe of the shipped weights or of another training directory, ready to predict.

    Raises:
        NotFoundError: If there is no probe.
    """
    path = path or _existing("probe", "probe.safetensors")
    probe = Probe()
    weights = load_file(path / "probe.safetensors")
    probe.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in weights.items()})
    return probe.eval()


def _existing(part: str, marker: str) -> Path:
    path = WEIGHTS / part
    if not (path / marker).is_file():
        raise NotFoundError(
            f"the small world has no {part} at {path}; train it with `python -m mos.smallworld.pretrain`"
        )
    return path
