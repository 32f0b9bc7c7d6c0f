"""The tokenizer spells everything and holds the world's words whole."""

from transformers import CLIPTokenizer

from mos.smallworld.captions import world_words
from mos.smallworld.tokenizer import MAX_TOKENS, build_tokenizer, learn_merges


def test_every_word_of_the_world_is_one_token():
    tokenizer = build_tokenizer()
    lengths = {word: len(tokenizer(word).input_ids) - 2 for word in world_words()}
    assert len(lengths) > 100
    assert set(lengths.values()) == {1}


def test_unknown_words_are_spelled_not_dropped():
    tokenizer = build_tokenizer()
    ids = tokenizer("zebra").input_ids[1:-1]
    assert len(ids) > 1
    assert tokenizer.eos_token_id not in ids
    assert "".join(tokenizer.convert_ids_to_tokens(ids)).replace("</w>", "") == "zebra"


def test_a_saved_tokenizer_reads_the_same(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    text = "a red and blue striped cat with a hat at the top left, odd (words) in space"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.model_max_length == MAX_TOKENS
    assert loaded.eos_token_id == len(loaded) - 1


def test_merges_do_not_depend_on_the_order_of_words():
    words = ("cat", "car", "hat", "star")
    assert learn_merges(words) == learn_merges(words[::-1])
