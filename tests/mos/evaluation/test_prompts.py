"""The suites: complete, in order, honest, and errors where a file is none."""

import re

import pytest

from mos.concept import CONCEPT_KINDS
from mos.errors import BadInputError, NotFoundError
from mos.evaluation.prompts import FULL_SEEDS, load_suite, suite_names
from mos.smallworld.captions import world_words
from mos.smallworld.world import ACCESSORIES, BACKDROPS, CLASSES, HUES, PATTERNS


def test_all_suites_hold_twenty_prompts_in_four_families():
    assert suite_names() == ("human", "object", "pet", "scene", "small-world")
    for name in suite_names():
        suite = load_suite(name)
        assert suite.name == name
        assert len(suite.prompts) == 20
        assert len(suite.families) == 4
        assert len(suite.generic) >= 6


def test_the_suites_for_kinds_share_the_papers_four_families():
    suites = [load_suite(name) for name in suite_names() if name != "small-world"]
    assert {kind for suite in suites for kind in suite.kinds} == set(CONCEPT_KINDS)
    for suite in suites:
        assert suite.families == ("place", "style", "interact", "property")
        assert [sum(p.family == family for p in suite.prompts) for family in suite.families] == [5, 5, 5, 5]


def test_the_small_worlds_suite_uses_only_words_its_text_encoder_knows():
    known = set(world_words()) | {"tok"}
    suite = load_suite("small-world")
    for prompt in (*suite.prompts, *suite.generic):
        assert set(re.findall(r"[a-z]+", prompt.text.lower())) <= known, prompt.text


def test_the_small_worlds_suite_never_names_what_makes_an_identity():
    forbidden = set(HUES) | set(PATTERNS) | (set(ACCESSORIES) - {"none"})
    for prompt in load_suite("small-world").prompts:
        assert not forbidden & set(prompt.text.split()), prompt.text


def test_the_small_worlds_suite_says_what_the_probe_should_see():
    suite = load_suite("small-world")
    for prompt in suite.prompts:
        assert prompt.backdrop in BACKDROPS
        assert prompt.backdrop in prompt.text
        assert prompt.alone == (not any(name in prompt.text.split() for name in CLASSES))
    assert {prompt.backdrop for prompt in suite.prompts if prompt.family == "place"} == set(BACKDROPS)


def test_shots_are_fixed_and_never_share_a_seed():
    suite = load_suite("pet")
    shots = suite.shots(FULL_SEEDS)
    assert len(shots) == 1000
    assert len({shot.seed for shot in (*shots, *suite.generic_shots(FULL_SEEDS))}) == 1000 + 50 * len(suite.generic)
    assert suite.shots(2) == load_suite("pet").shots(2)
    assert set(suite.shots(2)) <= set(shots)


def test_the_word_takes_the_placeholders_place():
    assert load_suite("small-world").prompts[0].with_word("<alice-cat>") == "a <alice-cat> on the beach"


def test_a_suite_of_ones_own_is_read_from_its_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[families]\nplace = ["a <TOK> here", {text = "<TOK>", alone = false}]\n')
    suite = load_suite(path)
    assert [prompt.alone for prompt in suite.prompts] == [True, False]
    assert suite.text_prefix == "A photo depicts "
    assert suite.generic == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name = ", "not a TOML file"),
        ('name = "x"', "missing keys"),
        ('name = "x"\ncolour = 1\n[families]\na = ["<TOK>"]', "unknown keys"),
        ('name = "x"\n[families]\na = ["no place"]', "expected a <TOK>"),
        ('name = "x"\ngeneric = ["<TOK>"]\n[families]\na = ["<TOK>"]', "expected no <TOK>"),
        ('name = "x"\n[families]\na = ["<TOK>", "<TOK>"]', "more than once"),
        ('name = "x"\n[families]\na = [{text = "<TOK>", seed = 3}]', "expected a text"),
        ('name = "x"\n[families]\na = [3]', "expected a text"),
        ('name = "x"\nfamilies = 3', "at least one"),
    ],
)
def test_a_file_that_is_no_suite_is_refused_with_the_reason(tmp_path, text, problem):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BadInputError, match=problem):
        load_suite(path)


def test_an_unknown_suite_or_seed_count_is_refused():
    with pytest.raises(NotFoundError, match="none of human"):
        load_suite("no-such-suite")
    with pytest.raises(BadInputError, match="seeds"):
        load_suite("pet").shots(0)
