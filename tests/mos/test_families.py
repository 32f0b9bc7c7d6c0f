"""SD 1.x, 2.x and XL are data: on each, a concept is trained, saved, loaded, fused and drawn."""

import numpy as np
import pytest
import torch

import mos
from mos.artifact import read_artifact, write_artifact
from mos.base_model import load_base
from mos.concept import ConceptRef
from mos.edlora.tokens import PromptEncoder
from mos.formats.pipeline import Concept
from mos.fusion import FusionConfig, FusionSource, StageRule, fuse, read_fused, write_fused
from mos.random_base import random_base
from mos.sampling import SamplingConfig, sample
from mos.training import PRESETS, train_concept
from tests.mos.formats.pipelines import pipeline_of
from tests.mos.training.concepts import made_up_concept

REFS = (ConceptRef("alice", "cat", 1), ConceptRef("bob", "dog", 1))
TRAINING = PRESETS["paper"].with_options(steps=2, lr_embedding=1e-2, lr_unet=1e-2, lr_text_encoder=1e-2)
FUSION = FusionConfig(
    sampling_steps=2,
    latent_seeds=(0,),
    text_encoder=StageRule(steps=5, ridge=1e-4),
    cross_attention=StageRule(steps=5, ridge=1e-4),
    spatial=StageRule(steps=5, ridge=1e-3),
    measure=False,
)
# What each family's files say: text encoders, latent scaling, prediction, layers of the tiny architecture.
FACTS = {
    "sd1": (("text_encoder",), "epsilon", 4),
    "sd2": (("text_encoder",), "v_prediction", 4),
    "sdxl": (("text_encoder", "text_encoder_2"), "epsilon", 5),
}


def _pixels(picture):
    return np.asarray(picture, dtype=np.int16)


@pytest.mark.parametrize("family", FACTS)
def test_a_family_is_trained_saved_loaded_fused_and_drawn(family, tmp_path):
    pipeline_of(random_base(family)).save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base")
    encoders, prediction_type, layers = FACTS[family]
    assert base.facts.family == family
    assert tuple(encoder.name for encoder in base.facts.encoders) == encoders
    assert base.facts.prediction_type == prediction_type
    assert base.facts.num_cross_attention_layers == layers
    sources = []
    for index, ref in enumerate(REFS):
        trained = train_concept(base, made_up_concept(ref.name, seed=index), TRAINING)
        write_artifact(trained, tmp_path / f"{ref.name}.safetensors")
        loaded = read_artifact(tmp_path / f"{ref.name}.safetensors", base.facts)
        assert loaded.embeddings.keys() == set(encoders)
        assert {rows.shape[1] for rows in loaded.embeddings.values()} == {layers}
        sources.append(FusionSource(ref=ref, edlora=loaded))
    write_fused(fuse(base, sources, FUSION), tmp_path / "fused")
    fused = read_fused(tmp_path / "fused", base.facts)
    assert set(fused.adapter.linears) == {*encoders, "unet"}
    config = SamplingConfig(num_inference_steps=2)
    plain, single, both = (
        _pixels(sample(base, adapter, [prompt], seeds=[3], config=config)[0])
        for adapter, prompt in (
            (None, "a cat in snow"),
            (sources[0].edlora.adapter(REFS[0]), "a <alice-cat> in snow"),
            (fused.adapter, "a <alice-cat> and a <bob-dog> in snow"),
        )
    )
    assert plain.shape == single.shape == both.shape == (32, 32, 3)
    assert np.abs(single - plain).max() > 0
    assert np.abs(both - plain).max() > 0
    with mos.apply(pipeline_of(base), Concept(ref=REFS[0], edlora=sources[0].edlora)) as held:
        assert held.words == ("<alice-cat>",)


@torch.no_grad()
def test_the_pooled_embedding_of_sdxl_is_taken_at_the_true_eos():
    base = random_base("sdxl")
    encoder = base.text_encoders["text_encoder_2"]
    assert encoder.config.eos_token_id == 2
    prompt = "a photo of a cat"
    pooled = PromptEncoder(base).encode([prompt]).pooled
    ids = torch.tensor([PromptEncoder(base).token_ids(prompt, "text_encoder_2")])
    eos = ids[0].tolist().index(base.facts.encoder("text_encoder_2").eos_id)
    last = encoder(ids, output_hidden_states=True).last_hidden_state[:, eos]
    torch.testing.assert_close(pooled, encoder.text_projection(last), atol=1e-6, rtol=0)
    assert ids[0, -1] == base.facts.encoder("text_encoder_2").pad_id != base.facts.encoder("text_encoder_2").eos_id
