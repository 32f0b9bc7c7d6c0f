"""Exports proved by diffusers' own loaders: same text-encoder and U-Net outputs as ours."""

import pytest
import torch
from diffusers import DiffusionPipeline

from mos.concept import ConceptRef
from mos.edlora.adapter import Adapter, ConceptWords, applied
from mos.edlora.tokens import PromptEncoder
from mos.formats.exporting import export
from mos.formats.metadata import ExportDetails
from mos.formats.tensors import word_vectors
from mos.random_base import random_base
from tests.mos.adapters import random_adapter
from tests.mos.formats.concepts import EVERYTHING, random_concept
from tests.mos.formats.pipelines import pipeline_of

REF = ConceptRef("alice", "tom", 1)
DETAILS = ExportDetails(title="Tom", trigger=REF.word)
PROMPT = "a photo of <alice-tom> on the beach"
TOLERANCE = 1e-5


def _with_layer_means(adapter):
    """The same adapter with every word reduced to its layer mean."""
    vocabulary = tuple(
        ConceptWords(
            ref=concept.ref,
            word=concept.word,
            words=concept.words,
            class_word=concept.class_word,
            embeddings={
                encoder: word_vectors(concept, encoder).unsqueeze(1).expand_as(rows)
                for encoder, rows in concept.embeddings.items()
            },
        )
        for concept in adapter.vocabulary
    )
    return Adapter(linears=adapter.linears, vocabulary=vocabulary)


def _conditions(base, pooled):
    if base.facts.family != "sdxl":
        return {}
    ids = torch.tensor([[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]])
    return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}


@torch.no_grad()
def _ours(base, adapter, prompt):
    """Context [1, tokens, dim], pooled and U-Net output by our own code."""
    with applied(base, adapter):
        encoding = PromptEncoder(base, adapter.vocabulary).encode([prompt])
        context = encoding.context[:, 0]
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        pooled = encoding.pooled
        picture = base.unet(noise, 500, encoder_hidden_states=context, **_conditions(base, pooled)).sample
    return context, pooled, picture


@torch.no_grad()
def _theirs(pipe, base, prompt):
    if base.facts.family == "sdxl":
        context, _, pooled, _ = pipe.encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    else:
        context, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
        pooled = None
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return context, pooled, pipe.unet(noise, 500, encoder_hidden_states=context, **_conditions(base, pooled)).sample


def _assert_same(theirs, ours, plain):
    """Equal to 1e-5, and the adapter made a difference far above that."""
    for found, expected in zip(theirs, ours, strict=True):
        if expected is not None:
            torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    assert (ours[0] - plain[0]).abs().max() > 1e-2
    assert (ours[2] - plain[2]).abs().max() > 1e-2
    assert len(theirs) == 3


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("target", ["diffusers", "kohya"])
def test_diffusers_loads_our_lora_and_words(family, target, tmp_path):
    base = random_base(family)
    edlora = random_concept(base, tuned=EVERYTHING)
    adapter = edlora.adapter(REF)
    ours = _ours(base, _with_layer_means(adapter), PROMPT)
    plain = _ours(base, _silenced(adapter), PROMPT)
    export(adapter, base, "diffusers", tmp_path / "diffusers", name="tom", details=DETAILS)
    export(adapter, base, "kohya", tmp_path / "kohya", name="tom", details=DETAILS)
    pipe = pipeline_of(random_base(family))
    weight_name = "pytorch_lora_weights.safetensors" if target == "diffusers" else "tom.safetensors"
    pipe.load_lora_weights(str(tmp_path / target), weight_name=weight_name)
    pipe.load_textual_inversion(str(tmp_path / "diffusers" / "alice-tom.safetensors"))
    if family == "sdxl":
        pipe.load_textual_inversion(
            str(tmp_path / "diffusers" / "alice-tom_2.safetensors"),
            text_encoder=pipe.text_encoder_2,
            tokenizer=pipe.tokenizer_2,
        )
        wrong = _theirs(pipe, base, PROMPT)[1]
        assert (wrong - ours[1]).abs().max() > 0.1, "the old EOS id no longer steals the pooled output; drop the advice"
        pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id
    _assert_same(_theirs(pipe, base, PROMPT), ours, plain)


def _silenced(adapter):
    """The words without any update and at zero: what the plain base would do."""
    zeros = tuple(
        ConceptWords(
            ref=concept.ref,
            word=concept.word,
            words=concept.words,
            class_word=concept.class_word,
            embeddings={encoder: rows * 0 for encoder, rows in concept.embeddings.items()},
        )
        for concept in adapter.vocabulary
    )
    return Adapter(linears={}, vocabulary=zeros)


def test_a_fused_lora_loads_at_its_full_rank(tiny_base, tmp_path):
    fused = random_adapter(tiny_base, "<alice-tom>", "<bob-rex>", rank=8)
    details = ExportDetails(title="two", trigger="<alice-tom> <bob-rex>")
    export(fused, tiny_base, "diffusers", tmp_path, name="two", details=details)
    pipe = pipeline_of(random_base("sd1"))
    pipe.load_lora_weights(str(tmp_path))
    pipe.load_textual_inversion([str(tmp_path / f"{word}.safetensors") for word in ("alice-tom", "bob-rex")])
    prompt = "<alice-tom> and <bob-rex> in space"
    ours = _ours(tiny_base, _with_layer_means(fused), prompt)
    _assert_same(_theirs(pipe, tiny_base, prompt), ours, _ours(tiny_base, _silenced(fused), prompt))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_merged_pipeline_opens_as_any_other_and_knows_the_word(family, tmp_path):
    base = random_base(family)
    adapter = random_concept(base, tuned=EVERYTHING).adapter(REF)
    before = base.unet.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    export(adapter, base, "merged", tmp_path, name="tom", details=DETAILS)
    assert all(torch.equal(value, before[key]) for key, value in base.unet.state_dict().items())
    pipe = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    ours = _ours(base, _with_layer_means(adapter), PROMPT)
    _assert_same(_theirs(pipe, base, PROMPT), ours, _ours(base, _silenced(adapter), PROMPT))


def test_a_fused_mixofshow_folder_holds_every_layers_words(tiny_base, tmp_path):
    import json

    fused = random_adapter(tiny_base, "<alice-tom>", "<bob-rex>", rank=4)
    export(fused, tiny_base, "mixofshow", tmp_path, name="two", details=ExportDetails(title="two", trigger=""))
    table = json.loads((tmp_path / "new_concept_cfg.json").read_text())
    pipe = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    rows = pipe.text_encoder.get_input_embeddings().weight
    words = [(concept, index) for concept in fused.vocabulary for index in range(len(concept.words))]
    assert len(table) == len(words) == 4
    for concept, index in words:
        entry = table[concept.words[index]]
        assert pipe.tokenizer.convert_tokens_to_ids(entry["concept_token_names"]) == entry["concept_token_ids"]
        assert torch.equal(rows[entry["concept_token_ids"]], concept.embeddings["text_encoder"][index])
