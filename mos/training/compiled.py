"""Blocks of the frozen U-Net that no LoRA touches, run as compiled by ``torch.compile``.

LoRA acts through hooks that come and go with every step; a compiler would trace them again and again. The
residual blocks and feed-forwards without a tuned layer take tensors and give tensors, so they are compiled
one by one, whoever trains and however many.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from mos.errors import BadInputError

_KINDS = (ResnetBlock2D, FeedForward)
_MOST_SHAPES = 256
"""Of one block's code; blocks differ in width, and the number of pictures changes with the owners."""


class CompiledBlocks:
    """Compiled forward functions for a U-Net's untouched blocks.

    Args:
        unet: a diffusers U-Net, frozen.
        tuned: names of its layers that get a LoRA; blocks that hold one are left as they are.

    Raises:
        BadInputError: If nothing can be compiled here.
    """

    def __init__(self, unet: nn.Module, tuned: Sequence[str]) -> None:
        check_compiler(next(unet.parameters()).device)
        self._forwards: dict[nn.Module, Callable[..., Any]] = {
            module: torch.compile(module.forward)
            for name, module in unet.named_modules()
            if isinstance(module, _KINDS) and not any(layer.startswith(f"{name}.") for layer in tuned)
        }

    def __len__(self) -> int:
        """How many blocks are compiled."""
        return len(self._forwards)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run the blocks compiled inside; afterwards they are what they were."""
        with torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES):
            try:
                for module, forward in self._forwards.items():
                    module.forward = forward
                yield
            finally:
                for module in self._forwards:
                    vars(module).pop("forward", None)


def check_compiler(device: torch.device) -> None:
    """Compile a sum, the smallest proof that compiling works on this machine.

    Raises:
        BadInputError: If it does not; says why.
    """

    def add_one(values: torch.Tensor) -> torch.Tensor:
        return values + 1

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch about itself, on loading its compiler
            torch.compile(add_one)(torch.zeros(2, device=device))
    except Exception as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInputError(
            f"compile: torch cannot compile on this machine ({cause}); install a C++ compiler such as g++, "
            "or leave compile out"
        ) from error
