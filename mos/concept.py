"""Names: owners, concepts, versions, and the words that stand for a concept in a prompt."""

import re
from dataclasses import dataclass
from typing import Literal, Self, get_args

from mos.errors import BadInputError

NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
WORD_PATTERN = re.compile(r"<[a-z0-9]+(?:-[a-z0-9]+)*>")
_RESERVED_WORD = re.compile(r"<new[0-9]*>")

ConceptKind = Literal["human", "object", "scene", "pet", "style"]
"""What a concept shows; it chooses the caption templates and the evaluation prompts."""

CONCEPT_KINDS: tuple[str, ...] = get_args(ConceptKind)


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if it may name an owner or a concept.

    Raises:
        BadInputError: If it is not 1-40 lower-case ASCII letters, digits and inner hyphens.
    """
    if NAME_PATTERN.fullmatch(name) and "--" not in name:
        return name
    raise BadInputError(
        f"{what} {name!r}: expected 1 to 40 of a-z, 0-9 and single inner hyphens, such as red-robot; choose another"
    )


def check_word(word: str) -> str:
    """Return `word` if it may stand for a concept in prompts.

    Raises:
        BadInputError: If it is not of the form `<word-of-parts>` or is of the reserved form `<newN>`.
    """
    if WORD_PATTERN.fullmatch(word) and not _RESERVED_WORD.fullmatch(word):
        return word
    raise BadInputError(
        f"word {word!r}: expected lower-case letters, digits and single hyphens in angle brackets, "
        "such as <red-robot>, and never <newN>; choose another"
    )


@dataclass(frozen=True, order=True)
class ConceptRef:
    """A concept of an owner, at one version or at the newest: `owner/name` or `owner/name@version`."""

    owner: str
    name: str
    version: int | None = None

    def __post_init__(self) -> None:
        check_name(self.owner, "owner")
        check_name(self.name, "concept")
        if self.version is not None and not 1 <= self.version <= 999_999:
            raise BadInputError(f"version {self.version} of {self.owner}/{self.name}: expected 1 to 999999")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `owner/name` or `owner/name@version`.

        Raises:
            BadInputError: If the text is of neither form.
        """
        path, at, version = text.partition("@")
        owner, slash, name = path.partition("/")
        is_number = version.isascii() and version.isdigit() and len(version) <= 6
        if not slash or "/" in name or (at and not is_number):
            raise BadInputError(f"concept {text!r}: expected owner/name or owner/name@version, such as alice/robot@2")
        return cls(owner, name, int(version) if at else None)

    @property
    def word(self) -> str:
        """The one word people type for this concept: `<owner-name>`."""
        return f"<{self.owner}-{self.name}>"

    @property
    def words(self) -> tuple[str, str]:
        """The concept's own two words `(V_rand, V_class)`, which its typed word stands for."""
        return f"<{self.name}-rand>", f"<{self.name}-class>"

    def at(self, version: int) -> "ConceptRef":
        """The same concept at `version`."""
        return ConceptRef(self.owner, self.name, version)

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}" + ("" if self.version is None else f"@{self.version}")
