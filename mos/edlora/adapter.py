"""What sampling, fusion and evaluation consume: LoRA updates plus a vocabulary, and their application."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from mos.base_model import BaseModel
from mos.edlora.lora import LowRank
from mos.errors import BadInputError
from mos.layers import linear_module, linear_weight


@dataclass(frozen=True, kw_only=True, eq=False)
class ConceptWords:
    """The words of one concept and their embeddings.

    Args:
        ref: ``owner/name@version`` the words come from.
        word: what people type, such as ``<alice-cat>``.
        words: the concept's own words it stands for, such as ``("<cat-rand>", "<cat-class>")``.
        class_word: what replaces the concept where it must be left out, such as ``cat``.
        embeddings: text encoder -> [num_words, layers, dim], one row a cross-attention layer.
    """

    ref: str
    word: str
    words: tuple[str, ...]
    class_word: str
    embeddings: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """LoRA updates by component and canonical layer name, and the vocabulary that goes with them."""

    linears: Mapping[str, Mapping[str, LowRank]]
    vocabulary: tuple[ConceptWords, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """Every word people may type."""
        return tuple(concept.word for concept in self.vocabulary)


def check_adapter(base: BaseModel, adapter: Adapter) -> None:
    """Check that every update and embedding fits the base.

    Raises:
        BadInputError: If a component or layer does not exist in the base or a shape differs.
    """
    for component, updates in adapter.linears.items():
        shapes = base.facts.linear_shapes.get(component)
        if shapes is None:
            raise BadInputError(f"adapter tunes {component}, which the base {base.facts.name} does not have")
        for name, update in updates.items():
            if name not in shapes:
                raise BadInputError(f"adapter tunes {component} {name}, a layer {base.facts.name} does not have")
            if update.shape != tuple(shapes[name]):
                raise BadInputError(
                    f"adapter update of {component} {name} is {list(update.shape)}, "
                    f"the layer of {base.facts.name} is {list(shapes[name])}"
                )
    for concept in adapter.vocabulary:
        _check_words(base, concept)


@contextmanager
def applied(base: BaseModel, adapter: Adapter | None, *, scale: float | Mapping[str, float] = 1.0) -> Iterator[None]:
    """Run the base with ``weight + scale * delta`` inside; afterwards it is bit-equal to what it was.

    The original weights are set aside and put back, never recomputed. Contexts may be nested, with one
    another and with attention processors; they are undone in reverse order, also on exceptions.

    Args:
        base: its weights are exchanged for the duration.
        adapter: None leaves the base as it is.
        scale: one factor for all, or one a component (components left out keep 1).

    Raises:
        BadInputError: If the adapter does not fit the base; nothing has been changed then.
    """
    if adapter is None:
        yield
        return
    check_adapter(base, adapter)
    saved: list[tuple[Tensor, Tensor]] = []
    try:
        for component, updates in adapter.linears.items():
            factor = scale.get(component, 1.0) if isinstance(scale, Mapping) else scale
            for name, update in updates.items() if factor != 0 else ():
                parameter = linear_module(base.component(component), name).weight
                assert isinstance(parameter, Tensor)
                saved.append((parameter, parameter.data))
                parameter.data = _updated(parameter.data, update, factor)
        yield
    finally:
        for parameter, original in reversed(saved):
            parameter.data = original


def _updated(weight: Tensor, update: LowRank, factor: float) -> Tensor:
    delta = update.delta(factor).to(weight.device)
    return (weight.to(delta.dtype) + delta.view_as(weight)).to(weight.dtype)


def _check_words(base: BaseModel, concept: ConceptWords) -> None:
    layers = base.facts.num_cross_attention_layers
    for encoder in base.facts.encoders:
        found = concept.embeddings.get(encoder.name)
        expected = [len(concept.words), layers, encoder.hidden_dim]
        if found is None or list(found.shape) != expected:
            shape = "none" if found is None else list(found.shape)
            raise BadInputError(
                f"{concept.ref}: word embeddings for {encoder.name} are {shape}, "
                f"{base.facts.name} needs {expected} (words, cross-attention layers, dimension)"
            )


def weight_of(base: BaseModel, component: str, name: str) -> Tensor:
    """Return a layer's current weight as [out, in] (a view)."""
    return linear_weight(base.component(component), name)
