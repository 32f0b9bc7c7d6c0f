"""Writes a fused model as a complete diffusers pipeline: merged weights, and its words in the tokenizer.

A diffusers pipeline has one embedding a token, an ED-LoRA one a cross-attention layer: each word gets the mean over
its layers, so pictures of a plain pipeline come close to, but do not equal, those of `mos sample`. The layer
embeddings lie beside it in `fused.safetensors`.
"""

import copy
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import nn

from mos.base_model import BaseModel
from mos.concept import WORD_PATTERN
from mos.edlora.adapter import Adapter, applied
from mos.errors import BadInputError


def write_pipeline(base: BaseModel, adapter: Adapter, directory: str | Path) -> Path:
    """Merge an adapter into copies of the base's modules and save them in the diffusers layout.

    The base is untouched. The embeddings of its own vocabulary are kept bit for bit; the words' rows follow them.

    Args:
        base: Float32 base the adapter was made for.
        adapter: A fused model or a single concept.
        directory: Where to write; made if need be.

    Raises:
        BadInputError: If the tokenizer splits one of the words, or the directory is a file.
    """
    directory = Path(directory)
    if directory.is_file():
        raise BadInputError(f"{directory}: is a file; name a directory for the pipeline")
    with applied(base, adapter):
        unet = copy.deepcopy(base.unet)
        encoders = {name: copy.deepcopy(encoder) for name, encoder in base.text_encoders.items()}
    tokenizers = {name: copy.deepcopy(tokenizer) for name, tokenizer in base.tokenizers.items()}
    for name, encoder in encoders.items():
        _add_words(encoder, tokenizers[name], name, adapter, base.facts.encoder(name).eos_id)
    is_xl = base.facts.family == "sdxl"
    extra = (
        {"text_encoder_2": encoders["text_encoder_2"], "tokenizer_2": tokenizers["text_encoder_2"]}
        if is_xl
        else {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    )
    pipeline = (StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline)(
        vae=base.vae,
        text_encoder=encoders["text_encoder"],
        tokenizer=tokenizers["text_encoder"],
        unet=unet,
        scheduler=DPMSolverMultistepScheduler.from_config(base.scheduler.config),
        **extra,
    )
    pipeline.save_pretrained(directory, safe_serialization=True)
    return directory


def pipeline_prompt(prompt: str, adapter: Adapter) -> str:
    """The prompt as the written pipeline reads it: every typed word replaced by the concept's own words."""
    words = {concept.word: " ".join(concept.words) for concept in adapter.vocabulary}
    return WORD_PATTERN.sub(lambda match: words.get(match.group(), match.group()), prompt)


def _add_words(encoder: nn.Module, tokenizer: object, name: str, adapter: Adapter, eos_id: int) -> None:
    words = [word for concept in adapter.vocabulary for word in concept.words]
    rows = [row.mean(dim=0) for concept in adapter.vocabulary for row in concept.embeddings[name]]
    encoder.config.eos_token_id = eos_id  # type: ignore[union-attr]
    if not words:
        return
    table = encoder.get_input_embeddings()  # type: ignore[operator]
    size = len(table.weight)
    _extend_tokenizer(tokenizer, words, size)
    extended = nn.Embedding(size + len(words), table.weight.shape[1])
    with torch.no_grad():
        extended.weight[:size] = table.weight
        extended.weight[size:] = torch.stack(rows)
    encoder.set_input_embeddings(extended.requires_grad_(False))  # type: ignore[operator]
    encoder.config.vocab_size = size + len(words)  # type: ignore[union-attr]


def _extend_tokenizer(tokenizer: object, words: list[str], size: int) -> None:
    missing = size - len(tokenizer)  # type: ignore[arg-type]
    padding = [f"<unused-{index}>" for index in range(missing)]
    tokenizer.add_tokens([*padding, *words])  # type: ignore[attr-defined]
    for index, word in enumerate(words):
        ids = tokenizer(word, add_special_tokens=False).input_ids  # type: ignore[operator]
        if list(ids) != [size + index]:
            raise BadInputError(
                f"word {word} is read as tokens {list(ids)}, expected {size + index}; rename the concept"
            )
