"""LoRA of several concepts inside one forward pass of the frozen base.

The batch is grouped by concept: with K concepts and n rows each, rows k*n to (k+1)*n belong to concept k.
A tuned layer's output gains ``B_k A_k x`` by two batched products; layers that read the same input share
one packed down product. Legend: K concepts, n rows a concept, T tokens, r rank.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mos.base_model import BaseModel
from mos.edlora.lora import LowRank
from mos.layers import input_sites, linear_module


def bank_shapes(base: BaseModel, component: str, names: Sequence[str], rank: int) -> dict[str, tuple[int, ...]]:
    """Name the parameters of a component's LoRA: ``<site>.down`` [layers * rank, in], ``<layer>.up`` [out, rank]."""
    shapes: dict[str, tuple[int, ...]] = {}
    linear_shapes = base.facts.linear_shapes[component]
    for site, members in input_sites(base.component(component), names).items():
        shapes[f"{component}:{site}.down"] = (rank * len(members), linear_shapes[members[0]][1])
        for name in members:
            shapes[f"{component}:{name}.up"] = (linear_shapes[name][0], rank)
    return shapes


def initial_lora(
    base: BaseModel, component: str, names: Sequence[str], rank: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw a component's LoRA as it starts: down kaiming-uniform with a = sqrt(5), up zero."""
    tensors: dict[str, Tensor] = {}
    for key, shape in bank_shapes(base, component, names, rank).items():
        if key.endswith(".down"):
            bound = shape[1] ** -0.5
            tensors[key] = (torch.rand(shape, generator=generator) * 2 - 1) * bound
        else:
            tensors[key] = torch.zeros(shape)
    return tensors


def to_low_rank(
    base: BaseModel, component: str, names: Sequence[str], rank: int, tensors: Mapping[str, Tensor]
) -> dict[str, LowRank]:
    """Take one concept's packed parameters apart: canonical layer name -> update."""
    updates: dict[str, LowRank] = {}
    for site, members in input_sites(base.component(component), names).items():
        down = tensors[f"{component}:{site}.down"]
        for index, name in enumerate(members):
            rows = down[index * rank : (index + 1) * rank]
            updates[name] = LowRank(up=tensors[f"{component}:{name}.up"], down=rows.clone())
    return {name: updates[name] for name in names}


@contextmanager
def slotted(
    base: BaseModel, component: str, names: Sequence[str], rank: int, leaves: Mapping[str, Tensor]
) -> Iterator[None]:
    """Run a component with every concept's LoRA on its own rows inside; no hook stays behind.

    Args:
        base: the frozen base.
        component: whose layers ``names`` are.
        names: canonical names of the tuned layers.
        rank: r.
        leaves: as :func:`bank_shapes` names them, each with a leading slot dimension K.
    """
    module = base.component(component)
    with ExitStack() as stack:
        for site, members in input_sites(module, names).items():
            shared = _SharedDown(leaves[f"{component}:{site}.down"])
            for index, name in enumerate(members):
                hook = _hook(shared, index * rank, rank, leaves[f"{component}:{name}.up"])
                stack.callback(linear_module(module, name).register_forward_hook(hook).remove)
        yield


class _SharedDown:
    """The packed down product of one input site, computed once for the layers that read it."""

    def __init__(self, down: Tensor) -> None:
        self.down = down
        self._input: Tensor | None = None
        self._output: Tensor | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """[K*n, T, in] -> [K, n*T, layers * r]."""
        if self._input is not inputs or self._output is None:
            grouped = inputs.reshape(self.down.shape[0], -1, inputs.shape[-1])
            self._input, self._output = inputs, torch.bmm(grouped, self.down.transpose(1, 2))
        return self._output


def _hook(shared: _SharedDown, start: int, rank: int, up: Tensor) -> Callable[..., Tensor]:
    def add_update(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if isinstance(module, nn.Conv2d):
            inputs = args[0].flatten(2).transpose(1, 2)
            update = torch.bmm(shared(inputs)[..., start : start + rank], up.transpose(1, 2))
            return output + update.view(output.shape[0], -1, up.shape[1]).transpose(1, 2).view_as(output)
        low = shared(args[0])[..., start : start + rank]
        grouped = output.reshape(up.shape[0], -1, up.shape[1])
        if low.dtype != grouped.dtype:
            return output + torch.bmm(low, up.transpose(1, 2)).view_as(output)
        return torch.baddbmm(grouped, low, up.transpose(1, 2).to(low.dtype)).view_as(output)

    return add_update
