"""A merged folder is an ordinary diffusers pipeline with the concepts in its weights and tokenizer."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from mos.base_model import BaseModel, fingerprint
from mos.edlora.adapter import applied
from mos.errors import BadInputError
from mos.formats.merged import write_merged
from mos.random_base import random_base
from tests.mos.adapters import random_adapter

WORDS = ("<alice-tom>", "<bob-rex>")


@pytest.fixture
def base() -> BaseModel:
    return random_base("sd1")


def opened(base, directory, **changes) -> StableDiffusionPipeline:
    adapter = random_adapter(base, *WORDS, rank=4)
    write_merged(adapter, base, directory, layered_words=False, **changes)
    pipe = StableDiffusionPipeline.from_pretrained(directory, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_pipeline_draws_and_its_weights_are_those_of_the_applied_model(base, tmp_path):
    pipe = opened(base, tmp_path / "pipeline")
    with applied(base, random_adapter(base, *WORDS, rank=4)):
        merged = fingerprint(base.unet)
    assert fingerprint(pipe.unet) == merged != base.facts.fingerprint["unet"]
    assert fingerprint(base.unet) == base.facts.fingerprint["unet"]
    images = pipe("<alice-tom> and <bob-rex>", num_inference_steps=2, output_type="np", height=32, width=32).images
    assert images.shape == (1, 32, 32, 3)


def test_a_typed_word_is_its_layer_means_and_the_old_vocabulary_is_bit_equal(base, tmp_path):
    pipe = opened(base, tmp_path)
    old = base.text_encoder.get_input_embeddings().weight
    table = pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[: len(old)], old)
    prompt = pipe.maybe_convert_prompt("<bob-rex>", pipe.tokenizer)
    ids = pipe.tokenizer(prompt, add_special_tokens=False).input_ids
    concept = random_adapter(base, *WORDS, rank=4).vocabulary[1]
    assert torch.equal(table[ids], concept.embeddings["text_encoder"].mean(dim=1))


def test_a_tokenizer_smaller_than_its_table_is_filled_up_before_the_words(base, tmp_path):
    model = base.text_encoder
    grown = model.get_input_embeddings().weight.shape[0] + 3
    model.resize_token_embeddings(grown, mean_resizing=False)
    pipe = opened(base, tmp_path)
    first = pipe.tokenizer.convert_tokens_to_ids("<alice-tom>")
    assert first == grown
    assert pipe.text_encoder.get_input_embeddings().weight.shape[0] == len(pipe.tokenizer)


def test_a_word_the_base_already_knows_is_refused(base, tmp_path):
    base.tokenizer.add_tokens(["<bob-rex>"])
    base.text_encoder.resize_token_embeddings(len(base.tokenizer), mean_resizing=False)
    with pytest.raises(BadInputError, match="knows"):
        opened(base, tmp_path)


def test_a_file_in_the_way_is_refused(base, tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(BadInputError, match="is a file"):
        opened(base, tmp_path / "file")
