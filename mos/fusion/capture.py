"""Records the inputs of layers by hooks that live in a `with`, as Gram matrices and nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mos.fusion.statistics import GramAccumulator
from mos.layers import linear_module


@contextmanager
def recording(
    module: nn.Module,
    sites: Mapping[str, Sequence[str]],
    accumulators: Mapping[str, GramAccumulator],
    *,
    tokens: int | None = None,
    batch: slice | None = None,
) -> Iterator[None]:
    """Add the inputs of every site to its accumulator while the context is open.

    The linears of a site share their input, so only the first of each carries a hook. Hooks are gone afterwards,
    also on exceptions.

    Args:
        module: The component that runs.
        sites: Site name -> canonical names of its linears.
        accumulators: Site name -> where its inputs go.
        tokens: Only the first so many positions of each [batch, positions, in] input; None takes all.
        batch: Only these of the batch; None takes all.
    """
    handles = []
    try:
        for site, linears in sites.items():
            hook = _hook(accumulators[site], tokens, batch)
            handles.append(linear_module(module, linears[0]).register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(accumulator: GramAccumulator, tokens: int | None, batch: slice | None):  # type: ignore[no-untyped-def]
    def record(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        chosen = arguments[0] if batch is None else arguments[0][batch]
        accumulator.add(_rows(chosen, tokens))

    return record


def _rows(inputs: Tensor, tokens: int | None) -> Tensor:
    """[batch, positions, in] or the [batch, in, height, width] of a 1x1 convolution as rows [..., in]."""
    if inputs.ndim == 4:
        return inputs.movedim(1, -1)
    return inputs if tokens is None else inputs[:, :tokens]


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Run CPU operations on `count` threads inside, because the bits of a sum depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
