"""The tensors of an export, under the names the other tool looks for."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mos.edlora.adapter import Adapter, ConceptWords
from mos.edlora.lora import LowRank
from mos.facts import BaseFacts
from mos.formats.embedding_loss import layer_mean
from mos.formats.names import diffusers_stem, kohya_stem, mixofshow_stem, projections_are_convolutions


def diffusers_tensors(adapter: Adapter, facts: BaseFacts) -> dict[str, Tensor]:
    """LoRA as ``pipeline.load_lora_weights`` reads it; ``lora_A`` is down, ``lora_B`` up."""
    tensors = {}
    for component, layer, update in _updates(adapter):
        stem = diffusers_stem(component, layer)
        tensors[f"{stem}.lora_A.weight"] = _shaped(update.down, layer, facts)
        tensors[f"{stem}.lora_B.weight"] = _shaped(update.up, layer, facts)
    return tensors


def layerwise_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Words with a row for each layer, under names that diffusers passes over and the importer reads.

    One concept: ``edlora.embedding.<encoder>.<word>``; several: ``edlora.embedding.<encoder>.<concept>.<word>``.
    """
    tensors = {}
    for number, concept in enumerate(adapter.vocabulary):
        place = f"{number}." if len(adapter.vocabulary) > 1 else ""
        for encoder, rows in concept.embeddings.items():
            for index, row in enumerate(rows):
                tensors[f"edlora.embedding.{encoder}.{place}{index}"] = row
    return tensors


def kohya_tensors(adapter: Adapter, facts: BaseFacts) -> dict[str, Tensor]:
    """LoRA as kohya's scripts, A1111 and ComfyUI read it; alpha is the rank, so that the scale is 1."""
    tensors = {}
    for component, layer, update in _updates(adapter):
        stem = kohya_stem(facts, component, layer)
        tensors[f"{stem}.lora_down.weight"] = _shaped(update.down, layer, facts)
        tensors[f"{stem}.lora_up.weight"] = _shaped(update.up, layer, facts)
        tensors[f"{stem}.alpha"] = torch.tensor(float(update.rank))
    return tensors


def mixofshow_table(adapter: Adapter, facts: BaseFacts) -> dict[str, dict[str, dict[str, Tensor]]]:
    """A concept as the Mix-of-Show reference stores it: embeddings by word, LoRA by component."""
    table: dict[str, dict[str, Tensor]] = {"new_concept_embedding": {}, "text_encoder": {}, "unet": {}}
    for component, layer, update in _updates(adapter):
        stem = mixofshow_stem(component, layer)
        table[component][f"{stem}.lora_down.weight"] = _shaped(update.down, layer, facts).clone()
        table[component][f"{stem}.lora_up.weight"] = _shaped(update.up, layer, facts).clone()
    for concept in adapter.vocabulary:
        for word, rows in zip(concept.words, concept.embeddings["text_encoder"], strict=True):
            table["new_concept_embedding"][word] = rows.detach().float().cpu().clone()
    return {"params": table}


def inversion_tensors(concept: ConceptWords, encoder: str, name: str) -> dict[str, Tensor]:
    """One encoder's words as a textual-inversion file: layer means [num_words, dim] under one name."""
    return {name: word_vectors(concept, encoder)}


def word_vectors(concept: ConceptWords, encoder: str) -> Tensor:
    """Layer means of a concept's words, [num_words, dim]."""
    return torch.stack([layer_mean(rows) for rows in concept.embeddings[encoder]])


def webui_inversion_tensors(concept: ConceptWords) -> dict[str, Tensor]:
    """Words as A1111 and ComfyUI read them: ``emb_params``, or ``clip_l`` and ``clip_g`` for SDXL."""
    if "text_encoder_2" in concept.embeddings:
        return {
            "clip_l": word_vectors(concept, "text_encoder"),
            "clip_g": word_vectors(concept, "text_encoder_2"),
        }
    return {"emb_params": word_vectors(concept, "text_encoder")}


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every number of every tensor is finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def _updates(adapter: Adapter) -> list[tuple[str, str, LowRank]]:
    return [
        (component, layer, update) for component, table in adapter.linears.items() for layer, update in table.items()
    ]


def _shaped(matrix: Tensor, layer: str, facts: BaseFacts) -> Tensor:
    """Give a matrix the two unit sides of a 1x1 convolution where the layer is one."""
    matrix = matrix.detach().float().cpu().contiguous()
    is_projection = layer.endswith((".proj_in", ".proj_out"))
    return matrix[:, :, None, None] if is_projection and projections_are_convolutions(facts) else matrix
