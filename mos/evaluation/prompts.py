"""Prompt suites: what a concept is asked to do, in families, read from TOML."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mos.errors import BadInputError, NotFoundError

SUITES = Path(__file__).parent / "suites"
PLACEHOLDER = "<TOK>"

STANDING_SEEDS = 2
"""Seeds a prompt of the standing table."""

FULL_SEEDS = 50
"""Seeds a prompt of the published evaluation (Mix-of-Show, arXiv:2305.18292, section 4)."""

_SEED_STRIDE = 1000


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt of a suite.

    Attributes:
        text: With `<TOK>` where the concept stands, or without for generic prompts.
        family: Name of its family; "generic" for prompts without a concept.
        backdrop: Backdrop of the small world that it asks for, or empty.
        alone: Whether the concept is the only subject it asks for.
    """

    text: str
    family: str
    backdrop: str = ""
    alone: bool = True

    def with_word(self, word: str) -> str:
        """The prompt with `word` in the concept's place."""
        return self.text.replace(PLACEHOLDER, word)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture to draw: a prompt and the seed of its first noise."""

    prompt: Prompt
    seed: int


@dataclass(frozen=True, kw_only=True)
class PromptSuite:
    """Prompts in families, with generic ones beside them.

    Attributes:
        name: Name of the suite.
        kinds: Kinds of concept it suits.
        text_prefix: Put before a prompt when its text is scored, as CLIPScore does.
        prompts: The concept's prompts, family by family.
        generic: Prompts without the concept, to see what else a model changes.
    """

    name: str
    kinds: tuple[str, ...]
    text_prefix: str
    prompts: tuple[Prompt, ...]
    generic: tuple[Prompt, ...]

    @property
    def families(self) -> tuple[str, ...]:
        """The names of the families, in order."""
        return tuple(dict.fromkeys(prompt.family for prompt in self.prompts))

    def shots(self, num_seeds: int = STANDING_SEEDS) -> tuple[Shot, ...]:
        """Every prompt with its fixed seeds: the same for every model, so that pictures pair up."""
        return _shots(self.prompts, num_seeds, 0)

    def generic_shots(self, num_seeds: int = STANDING_SEEDS) -> tuple[Shot, ...]:
        """Every generic prompt with its fixed seeds."""
        return _shots(self.generic, num_seeds, len(self.prompts))


def _shots(prompts: tuple[Prompt, ...], num_seeds: int, first: int) -> tuple[Shot, ...]:
    if not 1 <= num_seeds <= _SEED_STRIDE:
        raise BadInputError(f"{num_seeds} seeds a prompt; expected 1 to {_SEED_STRIDE}")
    return tuple(
        Shot(prompt=prompt, seed=(first + index) * _SEED_STRIDE + repeat)
        for index, prompt in enumerate(prompts)
        for repeat in range(num_seeds)
    )


def suite_names() -> tuple[str, ...]:
    """The suites that come with mos."""
    return tuple(sorted(path.stem for path in SUITES.glob("*.toml")))


def load_suite(name_or_path: str | Path) -> PromptSuite:
    """Read a suite by its name, or a TOML file of one's own.

    Raises:
        NotFoundError: If there is neither; names the suites there are.
        BadInputError: If the file is not a suite; says what is wrong with it.
    """
    built_in = SUITES / f"{name_or_path}.toml"
    path = built_in if str(name_or_path) in suite_names() else Path(name_or_path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        known = ", ".join(suite_names())
        raise NotFoundError(f"suite {str(name_or_path)!r}: no such file and none of {known}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: not a TOML file: {error}") from error
    return _parse(data, path)


def _parse(data: Mapping[str, Any], path: Path) -> PromptSuite:
    allowed = {"name", "kinds", "text_prefix", "generic", "families"}
    unknown, missing = sorted(set(data) - allowed), sorted({"name", "families"} - set(data))
    if unknown or missing:
        raise BadInputError(f"{path}: unknown keys {unknown}, missing keys {missing}; see the suites of mos")
    families = data["families"]
    if not isinstance(families, dict) or not families:
        raise BadInputError(f"{path}: [families] must hold at least one list of prompts")
    prompts = tuple(_prompt(entry, name, path) for name, entries in families.items() for entry in entries)
    generic = tuple(_prompt(entry, "generic", path) for entry in data.get("generic", ()))
    texts = [prompt.text for prompt in (*prompts, *generic)]
    if len(set(texts)) != len(texts):
        twice = sorted({text for text in texts if texts.count(text) > 1})
        raise BadInputError(f"{path}: {twice[0]!r} occurs more than once; scores are kept by prompt")
    return PromptSuite(
        name=str(data["name"]),
        kinds=tuple(data.get("kinds", ())),
        text_prefix=str(data.get("text_prefix", "A photo depicts ")),
        prompts=prompts,
        generic=generic,
    )


def _prompt(entry: object, family: str, path: Path) -> Prompt:
    values: dict[str, Any] = {"text": entry} if isinstance(entry, str) else {}
    if isinstance(entry, dict):
        values = dict(entry)
    unknown = sorted(set(values) - {"text", "backdrop", "alone"})
    if unknown or not isinstance(values.get("text"), str):
        raise BadInputError(f"{path}: {entry!r} in {family}: expected a text, or text, backdrop and alone")
    if (PLACEHOLDER in values["text"]) == (family == "generic"):
        wanted = f"no {PLACEHOLDER}" if family == "generic" else f"a {PLACEHOLDER}"
        raise BadInputError(f"{path}: {values['text']!r} in {family}: expected {wanted}")
    return Prompt(family=family, **values)
