import pytest
import torch

from mos.edlora.tokens import PromptEncoder, PromptError
from mos.errors import BadInputError
from mos.random_base import random_base
from tests.mos.adapters import random_words


@pytest.fixture
def encoder(tiny_base):
    return PromptEncoder(tiny_base, [random_words(tiny_base, "<a-cat>"), random_words(tiny_base, "<b-dog>", seed=5)])


def test_a_plain_prompt_equals_the_text_encoder_alone_in_every_layer(tiny_base, encoder):
    prompt = "a photo of a cat on the beach"
    ids = tiny_base.tokenizer([prompt], padding="max_length", max_length=24, return_tensors="pt").input_ids
    expected = tiny_base.text_encoder(ids).last_hidden_state
    encoding = encoder.encode([prompt])
    assert encoding.context.shape == (1, 4, 24, 16)
    torch.testing.assert_close(encoding.context[0], expected.expand(4, -1, -1))
    assert encoding.token_ids["text_encoder"].tolist() == ids.tolist()


def test_layer_i_sees_the_words_embedding_of_layer_i(tiny_base, encoder):
    encoding = encoder.encode(["a photo of <a-cat> in snow", "a tree"])
    words = encoder.concepts["<a-cat>"].embeddings["text_encoder"]
    ids = encoding.token_ids["text_encoder"][0]
    table = tiny_base.text_encoder.get_input_embeddings()
    positions = encoder.token_positions("a photo of <a-cat> in snow", "<a-cat>")
    for layer in range(4):
        inputs = table(ids.clamp(max=619)).clone()
        inputs[list(positions)] = words[:, layer]
        hook = table.register_forward_hook(lambda *_, inputs=inputs: inputs[None])
        expected = tiny_base.text_encoder(ids.clamp(max=619)[None]).last_hidden_state[0]
        hook.remove()
        torch.testing.assert_close(encoding.context[0, layer], expected)
    assert not torch.equal(encoding.context[0, 0], encoding.context[0, 1])
    assert torch.equal(encoding.context[1, 0], encoding.context[1, 3])


def test_no_hook_stays_behind(tiny_base, encoder):
    encoder.encode(["<a-cat>"])
    assert not tiny_base.text_encoder.get_input_embeddings()._forward_hooks


def test_words_are_ids_past_the_vocabulary_and_never_collide(tiny_base, encoder):
    ids = encoder.token_ids("<a-cat> and <b-dog> and <a-cat>")
    new = [token for token in ids if token >= tiny_base.facts.encoders[0].vocab_size]
    assert new == [620, 621, 622, 623, 620, 621]
    assert encoder.token_positions("<a-cat> and <b-dog>", "<b-dog>") == (4, 5)
    assert encoder.token_positions("<a-cat> and <b-dog>", "<b-dog>", 1) == (5,)
    assert encoder.eos_position("<a-cat> and <b-dog>") == 6


def test_a_word_whose_parts_name_another_concept_does_not_rewrite_it(tiny_base):
    first, second = random_words(tiny_base, "<new5>"), random_words(tiny_base, "<new5-x>", seed=3)
    encoder = PromptEncoder(tiny_base, [first, second])
    assert [token for token in encoder.token_ids("<new5-x> <new5>") if token >= 620] == [622, 623, 620, 621]


def test_words_are_read_whatever_their_case(encoder):
    assert encoder.token_ids("<A-Cat>") == encoder.token_ids("<a-cat>")


@pytest.mark.parametrize("prompt", ["<c-fish>", "a <cat-rand>", "<a-cat> <a-ca>"])
def test_an_unknown_word_is_refused_with_the_known_ones(encoder, prompt):
    with pytest.raises(PromptError, match="<a-cat>, <b-dog>"):
        encoder.encode([prompt])


def test_control_tokens_in_a_prompt_are_refused(encoder):
    with pytest.raises(PromptError, match="control token"):
        encoder.encode(["a cat <|endoftext|> a dog"])


def test_a_long_prompt_is_refused_or_cut(encoder):
    long = "a cat " * 40
    with pytest.raises(PromptError, match="80 tokens, the base reads 22"):
        encoder.encode([long])
    assert encoder.encode([long], truncate=True).context.shape == (1, 4, 24, 16)


def test_plain_puts_the_class_word_in(encoder):
    assert encoder.plain("a photo of <a-cat>, and <B-dog>!") == "a photo of cat, and cat!"


def test_two_concepts_with_one_word_are_refused(tiny_base):
    with pytest.raises(BadInputError, match="share a word"):
        PromptEncoder(tiny_base, [random_words(tiny_base, "<a-cat>"), random_words(tiny_base, "<a-cat>")])


def test_equal_prompts_are_encoded_once(tiny_base, encoder):
    rows = []
    hook = tiny_base.text_encoder.get_input_embeddings().register_forward_hook(
        lambda _m, args, _o: rows.append(args[0].shape[0])
    )
    encoding = encoder.encode(["a cat", "<a-cat>", "a cat", "<a-cat>"])
    hook.remove()
    assert rows == [1 + 4]
    assert torch.equal(encoding.context[0], encoding.context[2])
    assert torch.equal(encoding.context[1], encoding.context[3])


def test_sdxl_encodings_match_diffusers():
    from diffusers import StableDiffusionXLPipeline

    base = random_base("sdxl")
    pipeline = StableDiffusionXLPipeline(
        base.vae, base.text_encoder, base.text_encoders["text_encoder_2"], base.tokenizer,
        base.tokenizers["text_encoder_2"], base.unet, base.scheduler,
    )  # fmt: skip
    expected, _, pooled, _ = pipeline.encode_prompt("a photo of a cat", do_classifier_free_guidance=False)
    encoding = PromptEncoder(base).encode(["a photo of a cat"])
    torch.testing.assert_close(encoding.context[:, 0], expected)
    torch.testing.assert_close(encoding.pooled, pooled)


def test_pooled_output_is_taken_at_eos_whatever_the_config_says():
    base = random_base("sdxl")
    encoder = PromptEncoder(base, [random_words(base, "<a-cat>")])
    right = encoder.encode(["a <a-cat> in the snow"]).pooled
    base.text_encoders["text_encoder_2"].text_model.eos_token_id = 2
    torch.testing.assert_close(encoder.encode(["a <a-cat> in the snow"]).pooled, right)
