"""Choosing a diffusers scheduler by name, on the base model's own noise schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mos.errors import BadInputError

DEFAULT_SCHEDULER = "dpm++"
SHORT_NAMES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpm++-karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    ),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Short name -> diffusers class and the options that make it what the name says."""


def make_scheduler(name: str | None, base_scheduler: Any) -> Any:
    """Build a fresh scheduler that shares the base's betas, spacing and prediction type.

    Args:
        name: A short name, `base` for the base's own class, any diffusers scheduler class name, or None for
            DPM-Solver++ (arXiv:2211.01095) of second order, multistep.
        base_scheduler: The scheduler the base model came with.

    Raises:
        BadInputError: If diffusers has no such scheduler, or it cannot take the base's noise schedule.
    """
    name = DEFAULT_SCHEDULER if name is None else name
    if name == "base":
        return type(base_scheduler).from_config(base_scheduler.config)
    class_name, options = SHORT_NAMES.get(name, (name, {}))
    scheduler_class = _find_class(class_name)
    try:
        return scheduler_class.from_config(dict(base_scheduler.config), **options)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise BadInputError(f"scheduler {name}: cannot take this base's noise schedule ({error})") from error


def _find_class(class_name: str) -> Any:
    import diffusers
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    found = getattr(diffusers, class_name, None) if class_name.endswith("Scheduler") else None
    if not isinstance(found, type) or not issubclass(found, SchedulerMixin):
        raise BadInputError(
            f"scheduler {class_name!r}: unknown; use base, {', '.join(sorted(SHORT_NAMES))} "
            "or a diffusers class such as HeunDiscreteScheduler"
        )
    return found


def starting_noise(seeds: list[int], shape: tuple[int, int, int]) -> torch.Tensor:
    """Unit noise for each seed, drawn on the CPU so that it does not depend on device or batch.

    Args:
        seeds: One a picture.
        shape: channels, height, width of the latents.

    Returns:
        [len(seeds), channels, height, width] float32.
    """
    return torch.stack([torch.randn(shape, generator=seed_generator(seed)) for seed in seeds])


def seed_generator(seed: int) -> torch.Generator:
    """A CPU generator for one picture."""
    return torch.Generator("cpu").manual_seed(seed)
