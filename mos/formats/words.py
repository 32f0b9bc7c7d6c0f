"""Finding the word embeddings in files of other tools, and making them where a file has none."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mos.base_model import BaseModel
from mos.concept import WORD_PATTERN
from mos.facts import BaseFacts
from mos.formats.source import ForeignFile, ImportFormatError

MAX_WORDS = 4

_OURS = re.compile(r"edlora\.embedding\.(text_encoder(?:_2)?)\.([0-9])")
_REFERENCE = re.compile(r"(?:params\.)?new_concept_embedding\.(.+)")
_BUNDLED = re.compile(r"bundle_emb\.([^.]{1,80})\.(?:string_to_param\.\*|emb_params|clip_l)")
_BUNDLED_SECOND = re.compile(r"bundle_emb\.([^.]{1,80})\.clip_g")
_BY_ENCODER = {
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
_PLAIN = ("string_to_param.*", "emb_params")


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundWords:
    """Words of a concept and where they came from.

    Args:
        embeddings: text encoder -> [num_words, cross-attention layers, dim], float32.
        names: one a word as the file spells it; empty where it names none.
        origin: how they were stored, for the report.
    """

    embeddings: Mapping[str, Tensor]
    names: tuple[str, ...]
    origin: str


def find_words(file: ForeignFile, keys: Sequence[str], facts: BaseFacts) -> tuple[FoundWords | None, set[str]]:
    """Look for word embeddings among the keys of a file that are no LoRA.

    Args:
        file: the opened file.
        keys: of it, those that name no layer; their order is the words' order.
        facts: of the base; its dimensions and layer count decide what can be a word.

    Returns:
        The words, or None, and the keys they took.

    Raises:
        ImportFormatError: If embeddings are there but do not fit the base.
    """
    rows: dict[str, list[Tensor]] = {}
    names: list[str] = []
    taken: set[str] = set()
    origins: list[str] = []
    for key in keys:
        place = _place(file, key, keys, facts)
        if place is None:
            continue
        encoder, name, is_layered, origin = place
        tensor = file.tensors[key]
        rows.setdefault(encoder, []).append(_layered(file, key, tensor, facts, encoder, is_layered=is_layered))
        taken.add(key)
        origins.append(origin)
        if name and encoder == "text_encoder":
            names.append(name)
    if not rows:
        return None, taken
    embeddings = {encoder: torch.cat(found) for encoder, found in rows.items()}
    _check_encoders(file, embeddings, facts)
    return FoundWords(embeddings=embeddings, names=tuple(names), origin=origins[0]), taken


def words_of_base(base: BaseModel, trigger: str) -> FoundWords:
    """Make words of the base's own tokens, so that typing the concept's word is typing ``trigger``.

    Args:
        base: whose tokens they are.
        trigger: the text a LoRA without embeddings was trained with, such as ``sks dog``; one to four tokens.

    Raises:
        ImportFormatError: If the trigger is not one to four tokens.
    """
    embeddings = {}
    layers = base.facts.num_cross_attention_layers
    for encoder, model in base.text_encoders.items():
        ids = base.tokenizers[encoder](trigger, add_special_tokens=False, verbose=False).input_ids
        if not 1 <= len(ids) <= MAX_WORDS:
            raise ImportFormatError(f"trigger {trigger!r} is {len(ids)} tokens, expected 1 to {MAX_WORDS}; shorten it")
        rows = model.get_input_embeddings().weight.detach()[ids].float().cpu()
        embeddings[encoder] = rows.unsqueeze(1).repeat(1, layers, 1)
    return FoundWords(embeddings=embeddings, names=(), origin=f"the base's own words {trigger!r}")


def own_words(found: FoundWords, name: str) -> tuple[str, ...]:
    """Choose the concept's own words: the file's where they are valid words, else made from its name."""
    count = next(iter(found.embeddings.values())).shape[0]
    usable = [word for word in found.names if WORD_PATTERN.fullmatch(word)]
    if len(usable) == count and len(set(usable)) == count:
        return tuple(usable)
    if count == 2:
        return f"<{name}-rand>", f"<{name}-class>"
    return tuple(f"<{name}-{index}>" for index in range(count))


def _place(file: ForeignFile, key: str, keys: Sequence[str], facts: BaseFacts) -> tuple[str, str, bool, str] | None:
    """Say what a key embeds: encoder, word name, whether its rows are layers, and the format."""
    if ours := _OURS.fullmatch(key):
        return ours[1], "", True, "layer-wise embeddings of mos"
    if reference := _REFERENCE.fullmatch(key):
        return "text_encoder", file.words.get(key, reference[1]), True, "layer-wise embeddings of Mix-of-Show"
    if key in _BY_ENCODER:
        return _BY_ENCODER[key], "", False, "one embedding a word and encoder"
    if key in _PLAIN:
        return "text_encoder", str(file.scalars.get("name", "")), False, "textual inversion"
    if bundled := _BUNDLED.fullmatch(key):
        return "text_encoder", bundled[1], False, "embeddings bundled in a LoRA"
    if bundled := _BUNDLED_SECOND.fullmatch(key):
        return "text_encoder_2", bundled[1], False, "embeddings bundled in a LoRA"
    is_alone = len(file.tensors) == 1 or key.startswith("<")
    if is_alone and file.tensors[key].ndim <= 2 and key in keys:
        encoder = _encoder_of(file.tensors[key], facts)
        return None if encoder is None else (encoder, key, False, "textual inversion")
    return None


def _encoder_of(tensor: Tensor, facts: BaseFacts) -> str | None:
    width = tensor.shape[-1] if tensor.ndim else 0
    return next((encoder.name for encoder in facts.encoders if encoder.hidden_dim == width), None)


def _layered(
    file: ForeignFile, key: str, tensor: Tensor, facts: BaseFacts, encoder: str, *, is_layered: bool
) -> Tensor:
    """Bring an embedding to [words, layers, dim]."""
    known = {found.name: found.hidden_dim for found in facts.encoders}
    if encoder not in known:
        raise ImportFormatError(f"{file.path}: {key} embeds words for {encoder}, which {facts.name} does not have")
    rows = tensor.float().reshape(1, -1) if tensor.ndim < 2 else tensor.float()
    if rows.ndim != 2 or rows.shape[1] != known[encoder]:
        raise ImportFormatError(
            f"{file.path}: {key} is {list(tensor.shape)}, {encoder} of {facts.name} has words of {known[encoder]} "
            "channels; it was made for another base"
        )
    layers = facts.num_cross_attention_layers
    if is_layered and rows.shape[0] not in (1, layers):
        raise ImportFormatError(
            f"{file.path}: {key} has {rows.shape[0]} layers, {facts.name} has {layers}; it was made for another base"
        )
    if is_layered and rows.shape[0] == layers:
        return rows.unsqueeze(0)
    return rows.unsqueeze(1).repeat(1, layers, 1)


def _check_encoders(file: ForeignFile, embeddings: Mapping[str, Tensor], facts: BaseFacts) -> None:
    counts = {encoder: rows.shape[0] for encoder, rows in embeddings.items()}
    missing = [encoder.name for encoder in facts.encoders if encoder.name not in counts]
    if missing:
        raise ImportFormatError(f"{file.path}: has no word embedding for {', '.join(missing)} of {facts.name}")
    if len(set(counts.values())) != 1 or not 1 <= counts["text_encoder"] <= MAX_WORDS:
        found = ", ".join(f"{count} for {encoder}" for encoder, count in counts.items())
        raise ImportFormatError(f"{file.path}: word embeddings: {found}; expected the same 1 to {MAX_WORDS} for each")
