"""Names of concepts and the words that stand for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mos.concept import NAME_PATTERN, WORD_PATTERN, ConceptRef, check_name, check_word
from mos.errors import BadInputError

names = st.from_regex(NAME_PATTERN, fullmatch=True).filter(lambda name: "--" not in name)


@given(names, names, st.none() | st.integers(1, 999_999))
def test_a_reference_reads_back_what_it_writes(owner: str, name: str, version: int | None) -> None:
    ref = ConceptRef(owner, name, version)
    assert ConceptRef.parse(str(ref)) == ref
    assert WORD_PATTERN.fullmatch(ref.word)
    assert all(WORD_PATTERN.fullmatch(word) for word in ref.words)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alice",
        "alice/",
        "/cat",
        "a/b/c",
        "alice/cat@",
        "alice/cat@0",
        "alice/cat@x",
        "Alice/cat",
        "a/../b",
    ],
)
def test_a_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(BadInputError):
        ConceptRef.parse(text)


@pytest.mark.parametrize("name", ["", "-a", "a-", "a--b", "A", "a_b", "a/b", "é", "a" * 41, "a\n"])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(BadInputError):
        check_name(name)


@pytest.mark.parametrize("word", ["cat", "<>", "<Cat>", "<new1>", "<new>", "<a b>", "<a--b>", "<a>x"])
def test_a_malformed_word_is_refused(word: str) -> None:
    with pytest.raises(BadInputError):
        check_word(word)


def test_a_concept_is_typed_as_owner_and_name() -> None:
    ref = ConceptRef.parse("alice/red-robot@7")
    assert (ref.word, ref.words) == ("<alice-red-robot>", ("<red-robot-rand>", "<red-robot-class>"))
    assert ref.at(8).version == 8
