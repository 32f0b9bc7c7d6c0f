"""What an ED-LoRA says of itself, and how that is written into a safetensors header. Needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mos.concept import CONCEPT_KINDS, WORD_PATTERN
from mos.facts import TUNABLE
from mos.tensorfile import ArtifactError

FORMAT_VERSION = 1
MAX_RANK = 256

_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1/lora",
    "sd2": "stable-diffusion-v2/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
}
_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[\w./@:+() -]{1,200}")
_CLASS_WORD = re.compile(r"[a-z]{1,40}")


@dataclass(frozen=True, kw_only=True)
class ArtifactCard:
    """What an ED-LoRA says of itself.

    Args:
        words: its own words, such as ``("<cat-rand>", "<cat-class>")``; one to four.
        class_word: the class it belongs to, one lower-case word.
        kind: human, object, scene, pet or style.
        base_name: for people; the base is known by its fingerprint.
        family: sd1, sd2 or sdxl.
        base_fingerprint: component -> sha256 hex.
        rank: of every update; 0 where no layer is tuned.
        tuned: groups of ``mos.facts.TUNABLE`` that are tuned.
        seed: of the training.
        recipe: training options, text to text.
        title: one line for people.
        format_version: of this file.
    """

    words: tuple[str, ...]
    class_word: str
    kind: str
    base_name: str
    family: str
    base_fingerprint: Mapping[str, str]
    rank: int
    tuned: tuple[str, ...]
    seed: int
    recipe: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        problem = _card_problem(self)
        if problem:
            raise ArtifactError(f"artifact card: {problem}")


def card_metadata(card: ArtifactCard) -> dict[str, str]:
    """A card as the ``mos.*`` text fields of a safetensors header; its title is ``modelspec.title``."""

    def as_json(value: Any) -> str:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    return {
        "mos.format": str(card.format_version),
        "mos.words": as_json(list(card.words)),
        "mos.class_word": card.class_word,
        "mos.kind": card.kind,
        "mos.base_name": card.base_name,
        "mos.family": card.family,
        "mos.base_fingerprint": as_json(dict(card.base_fingerprint)),
        "mos.rank": str(card.rank),
        "mos.tuned": as_json(list(card.tuned)),
        "mos.seed": str(card.seed),
        "mos.recipe": as_json(dict(card.recipe)),
    }


def all_metadata(card: ArtifactCard) -> dict[str, str]:
    """Everything the header of an artifact with this card says."""
    return {
        **card_metadata(card),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _ARCHITECTURES[card.family],
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": card.title,
    }


def parse_card(metadata: Mapping[str, str], path: Path) -> ArtifactCard:
    """Read a card from a header's ``mos.*`` fields and ``modelspec.title``; further fields are passed over.

    Raises:
        ArtifactError: If a field is missing, malformed or of a newer format; names `path`.
    """
    version = metadata.get("mos.format")
    if version is None:
        raise ArtifactError(f"{path}: no mos artifact: its metadata has no mos.format; try mos import")
    if version.isascii() and version.isdigit() and len(version) < 5 and int(version) > FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: written by a newer mos (format {version}, this one reads {FORMAT_VERSION}); "
            "pip install --upgrade mos"
        )
    try:
        return ArtifactCard(
            words=tuple(json.loads(metadata["mos.words"])),
            class_word=metadata["mos.class_word"],
            kind=metadata["mos.kind"],
            base_name=metadata["mos.base_name"],
            family=metadata["mos.family"],
            base_fingerprint=dict(json.loads(metadata["mos.base_fingerprint"])),
            rank=int(metadata["mos.rank"]),
            tuned=tuple(json.loads(metadata["mos.tuned"])),
            seed=int(metadata["mos.seed"]),
            recipe=dict(json.loads(metadata["mos.recipe"])),
            title=metadata["modelspec.title"],
            format_version=int(version),
        )
    except KeyError as error:
        raise ArtifactError(f"{path}: metadata has no {error.args[0]}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}: metadata cannot be read: {error}") from error
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def whole_card(metadata: Mapping[str, str], path: Path) -> ArtifactCard:
    """Read the card of an artifact, whose header holds nothing else.

    Raises:
        ArtifactError: As :func:`parse_card`, or if there is more or it is written in another way.
    """
    card = parse_card(metadata, path)
    if all_metadata(card) != dict(metadata):
        differing = {key for key, value in metadata.items() if all_metadata(card).get(key) != value}
        raise ArtifactError(f"{path}: unknown or unusual metadata: {', '.join(sorted(differing))[:200]}")
    return card


def _card_problem(card: ArtifactCard) -> str | None:
    """Say what is wrong with a card, or None."""

    def is_texts(values: Any) -> bool:
        return all(isinstance(value, str) and len(value) <= 500 and value.isprintable() for value in values)

    checks = (
        (card.format_version == FORMAT_VERSION, f"format {card.format_version}, expected {FORMAT_VERSION}"),
        (1 <= len(card.words) <= 4 and is_texts(card.words), f"{len(card.words)} words, expected 1 to 4 texts"),
        (is_texts(card.words) and all(map(WORD_PATTERN.fullmatch, card.words)), "a word is not of the form <word>"),
        (len(set(card.words)) == len(card.words), "a word occurs twice"),
        (bool(_CLASS_WORD.fullmatch(card.class_word)), f"class word {card.class_word[:40]!r} is not one word"),
        (card.kind in CONCEPT_KINDS, f"kind {card.kind[:40]!r}, expected one of {', '.join(CONCEPT_KINDS)}"),
        (bool(_NAME.fullmatch(card.base_name)), "the base's name is empty, too long or unprintable"),
        (card.family in _ARCHITECTURES, f"family {card.family[:40]!r}, expected {', '.join(_ARCHITECTURES)}"),
        (_is_fingerprint(card.base_fingerprint), "the base fingerprint is not sha256 by component"),
        (0 <= card.rank <= MAX_RANK, f"rank {card.rank}, expected 0 to {MAX_RANK}"),
        ((card.rank == 0) == (not card.tuned), f"rank {card.rank} with {len(card.tuned)} tuned groups"),
        (list(card.tuned) == [name for name in TUNABLE if name in card.tuned], "unknown or unordered tuned groups"),
        (0 <= card.seed < 1 << 63, f"seed {card.seed}, expected 0 to 2^63 - 1"),
        (len(card.recipe) <= 100 and is_texts([*card.recipe, *card.recipe.values()]), "the recipe is not short texts"),
        (len(card.title) <= 200 and is_texts([card.title]), "the title is too long or unprintable"),
    )
    return next((problem for holds, problem in checks if not holds), None)


def _is_fingerprint(fingerprint: Mapping[str, str]) -> bool:
    return {"unet", "text_encoder"} <= set(fingerprint) <= {"unet", "text_encoder", "text_encoder_2"} and all(
        isinstance(digest, str) and _HEX.fullmatch(digest) for digest in fingerprint.values()
    )
