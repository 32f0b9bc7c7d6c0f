"""A whole diffusers pipeline with a concept or fused model in its weights and its tokenizers."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn

from mos.base_model import BaseModel
from mos.edlora.adapter import Adapter, ConceptWords
from mos.edlora.lora import LowRank
from mos.errors import BadInputError
from mos.formats.tensors import word_vectors
from mos.layers import linear_module
from mos.tensorfile import write_atomically

CONCEPT_TABLE = "new_concept_cfg.json"


def write_merged(
    adapter: Adapter, base: BaseModel, directory: Path, *, layered_words: bool, half: bool = False
) -> tuple[Path, ...]:
    """Write a pipeline folder; the base in memory is left as it is.

    Every concept's typed word becomes tokens ``<word>``, ``<word>_1``, ... with the layer means, as diffusers
    spells a word of several vectors, so that a plain prompt works.

    Args:
        adapter: what to merge.
        base: float32 weights.
        directory: of the pipeline.
        layered_words: instead, add ``<new0>``, ``<new1>``, ... with a row a layer and the table that the
            Mix-of-Show reference samples with; its words are the concepts' own words.
        half: store float16.

    Returns:
        The files written.

    Raises:
        BadInputError: If the directory is a file, or the base's tokenizer knows or splits one of the words.
    """
    if directory.is_file():
        raise BadInputError(f"{directory}: is a file; name a directory for the pipeline")
    parts = {component: copy.deepcopy(base.component(component)) for component in ("unet", *base.text_encoders)}
    for component, updates in adapter.linears.items():
        for layer, update in updates.items():
            _merge(parts[component], layer, update)
    tokenizers = {name: copy.deepcopy(tokenizer) for name, tokenizer in base.tokenizers.items()}
    table: dict[str, Any] = {}
    for name in base.text_encoders:
        rows = _layered_rows(adapter, name) if layered_words else _mean_rows(adapter.vocabulary, name)
        first = _add_words(parts[name], tokenizers[name], rows)
        if layered_words:
            table |= _concept_table(adapter, base.facts.num_cross_attention_layers, first)
    pipeline = _pipeline(base, parts, tokenizers)
    if half:
        pipeline = pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(directory, safe_serialization=True)
    if layered_words:
        text = json.dumps(table, indent=1) + "\n"
        write_atomically(directory / CONCEPT_TABLE, [text.encode("ascii")])
    return tuple(sorted(path for path in directory.rglob("*") if path.is_file()))


def _merge(module: nn.Module, layer: str, update: LowRank) -> None:
    weight = linear_module(module, layer).weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        weight += update.delta().view_as(weight).to(weight)


def _mean_rows(vocabulary: tuple[ConceptWords, ...], encoder: str) -> dict[str, Tensor]:
    return {
        concept.word + (f"_{index}" if index else ""): vector
        for concept in vocabulary
        for index, vector in enumerate(word_vectors(concept, encoder))
    }


def _layered_rows(adapter: Adapter, encoder: str) -> dict[str, Tensor]:
    rows = [row for concept in adapter.vocabulary for word in concept.embeddings[encoder] for row in word]
    return {f"<new{index}>": row for index, row in enumerate(rows)}


def _add_words(encoder: Any, tokenizer: Any, rows: Mapping[str, Tensor]) -> int:
    """Add tokens and their embedding rows after the old table, which stays bit-equal; returns the first new id."""
    # Old files name EOS 2, which makes transformers pool at the highest id: an added word instead of EOS.
    encoder.config.eos_token_id = tokenizer.eos_token_id
    first = int(encoder.get_input_embeddings().weight.shape[0])
    if not rows:
        return first
    _extend_tokenizer(tokenizer, list(rows), first)
    encoder.resize_token_embeddings(first + len(rows), mean_resizing=False)
    with torch.no_grad():
        for index, row in enumerate(rows.values()):
            encoder.get_input_embeddings().weight[first + index] = row.to(encoder.get_input_embeddings().weight)
    return first


def _extend_tokenizer(tokenizer: Any, words: Sequence[str], first: int) -> None:
    """Give the words the ids from `first` on; a tokenizer smaller than its embedding table is filled up before."""
    taken = [word for word in words if word in tokenizer.get_vocab()]
    if taken or len(tokenizer) > first:
        raise BadInputError(
            f"base's tokenizer has {len(tokenizer)} tokens for {first} embeddings and knows {taken or 'none'} already; "
            "export from the plain base"
        )
    padding = [f"<unused-{index}>" for index in range(len(tokenizer), first)]
    tokenizer.add_tokens([*padding, *words])
    for index, word in enumerate(words):
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if list(ids) != [first + index]:
            raise BadInputError(f"word {word} is read as tokens {list(ids)}, expected {first + index}; rename it")


def _concept_table(adapter: Adapter, layers: int, first: int) -> dict[str, Any]:
    words = [word for concept in adapter.vocabulary for word in concept.words]
    return {
        word: {
            "concept_token_ids": list(range(first + index * layers, first + (index + 1) * layers)),
            "concept_token_names": [f"<new{number}>" for number in range(index * layers, (index + 1) * layers)],
        }
        for index, word in enumerate(words)
    }


def _pipeline(base: BaseModel, parts: Mapping[str, Any], tokenizers: Mapping[str, Any]) -> DiffusionPipeline:
    shared = {
        "vae": copy.deepcopy(base.vae),
        "unet": parts["unet"],
        "scheduler": DPMSolverMultistepScheduler.from_config(base.scheduler.config),
    }
    if base.facts.family == "sdxl":
        return StableDiffusionXLPipeline(
            text_encoder=parts["text_encoder"],
            text_encoder_2=parts["text_encoder_2"],
            tokenizer=tokenizers["text_encoder"],
            tokenizer_2=tokenizers["text_encoder_2"],
            **shared,
        )
    return StableDiffusionPipeline(
        text_encoder=parts["text_encoder"],
        tokenizer=tokenizers["text_encoder"],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **shared,
    )
