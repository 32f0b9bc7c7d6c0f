"""Concepts on an ordinary diffusers pipeline: one call puts them on, one takes them off again.

A pipeline carries one encoding of a prompt, [batch, tokens, dim]; a concept needs one for every
cross-attention layer. They travel side by side in the last dimension, [batch, tokens, layers * dim]: whatever
a pipeline does with an encoding (repeat, stack, chunk) leaves that dimension alone, and the U-Net's attention
processors cut out their own slice. Everything is done with hooks, processors and a copy of the tokenizer, and
undone by :meth:`Applied.remove`.
"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from mos.artifact import ArtifactCard, EDLoRA, read_artifact
from mos.base_model import BaseModel, assemble
from mos.concept import ConceptRef
from mos.edlora.adapter import Adapter, applied
from mos.edlora.attention import LayerwiseProcessor, attention_processors, layer_indices
from mos.edlora.lora import LowRank
from mos.errors import BadInputError, ConflictError
from mos.fusion.model import FusedModel, read_fused

__all__ = ["Applied", "Concept", "apply", "load_concept", "load_fused"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Concept:
    """One trained concept under a name.

    Args:
        ref: ``owner/name``; what people type is made of it.
        edlora: its updates and words.
    """

    ref: ConceptRef
    edlora: EDLoRA

    @property
    def word(self) -> str:
        """What to type in a prompt, such as ``<alice-cat>``."""
        return self.ref.word

    @property
    def card(self) -> ArtifactCard:
        """What the concept says of itself."""
        return self.edlora.card

    @property
    def adapter(self) -> Adapter:
        """LoRA and words, as every part of mos takes them."""
        return self.edlora.adapter(self.ref)

    @property
    def base_fingerprint(self) -> Mapping[str, str]:
        """Component -> sha256 of the base it was trained on."""
        return self.card.base_fingerprint


def load_concept(path: str | Path, *, name: str | None = None) -> Concept:
    """Open a concept's file.

    Args:
        path: of the file; ``mos concept pull owner/name`` prints one.
        name: ``owner/name``, which gives the word to type; None takes ``my/<class word>``.

    Raises:
        NotFoundError: If there is no such file.
        ArtifactError: If it is no concept; files of other tools go through ``mos import``.
    """
    edlora = read_artifact(path, None)
    ref = ConceptRef("my", edlora.card.class_word) if name is None else ConceptRef.parse(name)
    return Concept(ref=ref, edlora=edlora)


def load_fused(directory: str | Path) -> FusedModel:
    """Open what ``mos fuse`` wrote; its ``words`` are what to type.

    Raises:
        NotFoundError: If there is no fused model there.
        ArtifactError: If it is damaged.
    """
    return read_fused(directory, None)


def apply(
    pipe: Any,
    model: Concept | FusedModel | Adapter | Sequence[Concept],
    *,
    scale: float | Mapping[str, float] = 1.0,
    any_base: bool = False,
) -> "Applied":
    """Put concepts on a Stable Diffusion pipeline, until :meth:`Applied.remove` or the end of a ``with``.

    Args:
        pipe: a StableDiffusionPipeline or StableDiffusionXLPipeline (also image-to-image); not one with
            CPU offloading or a ControlNet.
        model: a concept, a fused model, or several concepts, whose updates are then simply added: concepts
            that were fused keep their looks better.
        scale: factor on the updates, one for all or one a component (``"unet"``, ``"text_encoder"``);
            words keep their embeddings.
        any_base: do not insist on the base the concept was trained on, only on its shapes.

    Raises:
        BadInputError: If the concept was made for another base.
        ConflictError: If something is applied to the pipeline already.
    """
    return Applied(pipe, model, scale=scale, any_base=any_base)


class Applied:
    """Concepts in force on a pipeline; also a context manager."""

    def __init__(self, pipe: Any, model: Any, *, scale: float | Mapping[str, float], any_base: bool) -> None:
        if any(isinstance(processor, _SlicingProcessor) for processor in pipe.unet.attn_processors.values()):
            raise ConflictError("this pipeline has concepts applied already; call remove() on them, or fuse them")
        models = list(model) if isinstance(model, Sequence) else [model]
        adapter = _sum([one if isinstance(one, Adapter) else one.adapter for one in models])
        base = _base_of(pipe)
        if not any_base:
            for one in models:
                _check_base(one, base)
        self.words = adapter.words
        self._stack = ExitStack()
        try:
            self._put_on(pipe, base, adapter, scale)
        except BaseException:
            self._stack.close()
            raise

    def remove(self) -> None:
        """Take everything off; the pipeline's weights are bit-equal to what they were. Twice is once."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _put_on(self, pipe: Any, base: BaseModel, adapter: Adapter, scale: float | Mapping[str, float]) -> None:
        layers = base.facts.num_cross_attention_layers
        dims = [encoder.hidden_dim for encoder in base.facts.encoders]
        self._stack.enter_context(applied(base, adapter, scale=scale))
        processors = [_SlicingProcessor(layer, layers, dims) for layer in layer_indices(pipe.unet)]
        self._stack.enter_context(attention_processors(pipe.unet, processors))
        for name, encoder in base.text_encoders.items():
            slot = name.replace("text_encoder", "tokenizer")
            tokenizer = getattr(pipe, slot)
            spoken = copy.deepcopy(tokenizer)
            first = _add_words(spoken, adapter)
            setattr(pipe, slot, spoken)
            self._stack.callback(setattr, pipe, slot, tokenizer)
            rows = [concept.embeddings[name] for concept in adapter.vocabulary]
            table = torch.cat(rows) if rows else torch.zeros(0, layers, base.facts.encoder(name).hidden_dim)
            hooks = _LayeredEncoder(first, table, base.facts.encoder(name).bos_id)
            for handle in hooks.attach(encoder):
                self._stack.callback(handle.remove)


class _SlicingProcessor(LayerwiseProcessor):
    """Takes its layer's slice out of encodings that lie side by side."""

    def __init__(self, layer: int | None, layers: int, dims: Sequence[int]) -> None:
        super().__init__(layer)
        self._layers, self._dims = layers, tuple(dims)

    def context(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None) -> Tensor:
        """Pick this layer's encoding; for two encoders, from each of their own block."""
        found = super().context(hidden_states, encoder_hidden_states)
        if self.layer is None or encoder_hidden_states is None or found.shape[-1] != self._layers * sum(self._dims):
            return found
        blocks = torch.split(found, [self._layers * dim for dim in self._dims], dim=-1)
        parts = [
            block[..., self.layer * dim : (self.layer + 1) * dim] for block, dim in zip(blocks, self._dims, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class _LayeredEncoder:
    """Hooks that make a text encoder give one encoding a layer, side by side in the last dimension.

    Args:
        first: token id of the first word.
        table: [words, layers, dim] embeddings.
        safe_id: a token id that stands in for words while the encoder looks rows up.
    """

    def __init__(self, first: int, table: Tensor, safe_id: int) -> None:
        self._first, self._table, self._safe_id = first, table, safe_id
        self._layers = table.shape[1]
        self._ids: Tensor | None = None
        self._batch = 0

    def attach(self, encoder: Any) -> list[Any]:
        """Register the hooks; the handles remove them."""
        return [
            encoder.register_forward_pre_hook(self._before, with_kwargs=True),
            encoder.get_input_embeddings().register_forward_hook(self._embed),
            encoder.register_forward_hook(self._after),
        ]

    def _before(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Repeat each prompt once a layer where a word occurs, and hide the words from the lookup."""
        ids: Tensor = args[0] if args else kwargs["input_ids"]
        self._batch = len(ids)
        has_words = bool((ids >= self._first).any())
        self._ids = ids.repeat_interleave(self._layers, dim=0) if has_words else ids
        safe = self._ids.masked_fill(self._ids >= self._first, self._safe_id)
        mask = kwargs.get("attention_mask")
        if has_words and mask is not None:
            kwargs = {**kwargs, "attention_mask": mask.repeat_interleave(self._layers, dim=0)}
        if args:
            return (safe, *args[1:]), kwargs
        return args, {**kwargs, "input_ids": safe}

    def _embed(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        if self._ids is None or not bool((self._ids >= self._first).any()):
            return output
        rows, columns = (self._ids >= self._first).nonzero(as_tuple=True)
        words = self._ids[rows, columns] - self._first
        table = self._table.to(output.device, output.dtype)
        return output.index_put((rows, columns), table[words, rows % self._layers])

    def _after(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """Bring the layers' encodings side by side; pooled outputs are the first layer's."""
        self._ids = None
        fields = {key: value for key, value in output.items() if value is not None}
        for key, value in fields.items():
            if key == "hidden_states":
                fields[key] = tuple(self._side_by_side(hidden) for hidden in value)
            elif key == "last_hidden_state":
                fields[key] = self._side_by_side(value)
            elif key in ("pooler_output", "text_embeds"):
                fields[key] = value[:: max(1, len(value) // self._batch)]
        return type(output)(**fields)

    def _side_by_side(self, hidden: Tensor) -> Tensor:
        if len(hidden) == self._batch:
            return hidden.repeat(1, 1, self._layers)
        by_layer = hidden.view(self._batch, self._layers, *hidden.shape[1:])
        return by_layer.transpose(1, 2).flatten(2)


def _base_of(pipe: Any) -> BaseModel:
    encoders = {
        name: getattr(pipe, name)
        for name in ("text_encoder", "text_encoder_2")
        if getattr(pipe, name, None) is not None
    }
    if not encoders or getattr(pipe, "unet", None) is None:
        raise BadInputError(f"{type(pipe).__name__}: expected a Stable Diffusion pipeline with text encoder and U-Net")
    if any(hasattr(part, "_hf_hook") for part in (pipe.unet, *encoders.values())):
        raise BadInputError(
            "the pipeline offloads its parts, so their weights cannot be exchanged; move it whole, .to()"
        )
    return assemble(
        name=str(getattr(pipe.config, "_name_or_path", "") or type(pipe).__name__),
        unet=pipe.unet,
        text_encoders=encoders,
        tokenizers={name: getattr(pipe, name.replace("text_encoder", "tokenizer")) for name in encoders},
        vae=pipe.vae,
        scheduler=pipe.scheduler,
    )


def _check_base(model: Any, base: BaseModel) -> None:
    expected = getattr(model, "base_fingerprint", None)
    if expected is None:
        return
    differing = [name for name, digest in base.facts.fingerprint.items() if expected.get(name) != digest]
    if differing:
        raise BadInputError(
            f"the pipeline's {' and '.join(differing)} differ from those of the base the concept was trained on; "
            "load that base, or say any_base=True if it is a close relative"
        )


def _add_words(tokenizer: Any, adapter: Adapter) -> int:
    """Teach a tokenizer the words as diffusers spells a word of several vectors; returns the first id."""
    first = len(tokenizer)
    names = [
        concept.word + (f"_{index}" if index else "")
        for concept in adapter.vocabulary
        for index in range(len(concept.words))
    ]
    if tokenizer.add_tokens(names) != len(names):
        raise ConflictError(f"the pipeline's tokenizer knows one of {', '.join(names)} already; give another name=")
    return first


def _sum(adapters: Sequence[Adapter]) -> Adapter:
    """Add updates by stacking ranks: [U1 U2] [V1; V2] = U1 V1 + U2 V2."""
    if len(adapters) == 1:
        return adapters[0]
    gathered: dict[str, dict[str, list[LowRank]]] = {}
    for adapter in adapters:
        for component, updates in adapter.linears.items():
            for layer, update in updates.items():
                gathered.setdefault(component, {}).setdefault(layer, []).append(update)
    linears = {
        component: {
            layer: LowRank(
                up=torch.cat([update.up for update in parts], dim=1), down=torch.cat([update.down for update in parts])
            )
            for layer, parts in layers.items()
        }
        for component, layers in gathered.items()
    }
    return Adapter(linears=linears, vocabulary=tuple(word for adapter in adapters for word in adapter.vocabulary))
