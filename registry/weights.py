"""The one place where the registry asks `mos` what a valid artifact is: before publishing and before listing."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mos.concept import ConceptRef
from mos.errors import CheckFailedError, MosError, NotFoundError
from registry.manifest import Manifest
from registry.records import Limits
from registry.row import base_key

if TYPE_CHECKING:
    from mos.artifact import ArtifactCard
    from mos.edlora.adapter import ConceptWords
    from mos.facts import BaseFacts

FUSED_WEIGHTS = "fused.safetensors"
FUSED_REPORT = "fused.json"


@dataclass(frozen=True, kw_only=True)
class Package:
    """What is to be published, read and checked: the files and what they say of themselves.

    Attributes:
        kind: `concept` for an ED-LoRA file, `fusion` for the directory of a fused model.
        files: Role -> bytes of the weights and, for a fusion, its report.
        base_name: What the base is called.
        base_family: `sd1`, `sd2` or `sdxl`.
        base_fingerprint: Component -> sha256.
        words: The concept's own words.
        class_word: Its class.
        concept_kind: What it shows.
        rank: Of its updates.
        recipe: How it was made.
        title: One line for people.
        sources: The concepts a fusion was made of.
    """

    kind: Literal["concept", "fusion"]
    files: Mapping[str, bytes]
    base_name: str
    base_family: str
    base_fingerprint: dict[str, str]
    words: tuple[str, ...] = ()
    class_word: str = ""
    concept_kind: str = ""
    rank: int = 0
    recipe: Mapping[str, str]
    title: str = ""
    sources: tuple[ConceptRef, ...] = ()


def read_package(path: Path) -> Package:
    """Read what is to be published and run the strict check on it.

    Args:
        path: An ED-LoRA file, or the directory of a fused model.

    Raises:
        NotFoundError: If nothing is there.
        BadInputError: If it is not a valid artifact; says why.
    """
    if path.is_dir():
        return _read_fusion(path)
    from mos.artifact import read_artifact

    card = read_artifact(path, None).card
    return Package(
        kind="concept",
        files={"weights": path.read_bytes()},
        base_name=card.base_name,
        base_family=card.family,
        base_fingerprint=dict(card.base_fingerprint),
        words=card.words,
        class_word=card.class_word,
        concept_kind=card.kind,
        rank=card.rank,
        recipe=_recipe(card),
        title=card.title,
    )


class WeightsCheck:
    """The indexer's strict check of weights; implements `registry.examine.ArtifactCheck`.

    With the facts of the base a concept names, exact tensors, shapes and norm caps are checked against it;
    without them the file is checked in itself, and the names of the checks passed say so. A fusion of n concepts may
    change the base n times as much as one.
    """

    def __init__(self, bases: Sequence["BaseFacts"] = ()) -> None:
        """Know these bases."""
        self._bases = {base_key(dict(facts.fingerprint)): facts for facts in bases}

    def __call__(self, manifest: Manifest, files: Mapping[str, bytes], limits: Limits) -> Sequence[str]:
        """Check the weights; see `ArtifactCheck`."""
        with tempfile.TemporaryDirectory(prefix="mos-check-") as folder:
            try:
                if manifest.kind == "fusion":
                    return self._check_fusion(manifest, files, Path(folder), limits)
                return self._check_concept(manifest, files, Path(folder), limits)
            except MosError as error:
                raise type(error)(str(error).replace(f"{folder}/", "").replace(folder, "fusion")) from error

    def _check_concept(
        self, manifest: Manifest, files: Mapping[str, bytes], folder: Path, limits: Limits
    ) -> Sequence[str]:
        from mos.artifact import read_artifact

        path = folder / "weights.safetensors"
        path.write_bytes(files["weights"])
        facts = self._bases.get(base_key(manifest.base_fingerprint))
        card = read_artifact(path, facts, max_delta_ratio=limits.max_norm_ratio).card
        _check_same("words", manifest.words, card.words)
        _check_same("class word", manifest.class_word, card.class_word)
        _check_same("kind", manifest.concept_kind, card.kind)
        _check_same("base", manifest.base_fingerprint, dict(card.base_fingerprint))
        _check_same("base family", manifest.base_family, card.family)
        _check_same("rank", manifest.rank, card.rank)
        return ("artifact", "card") if facts is None else ("artifact", "card", "base", "norms")

    def _check_fusion(
        self, manifest: Manifest, files: Mapping[str, bytes], folder: Path, limits: Limits
    ) -> Sequence[str]:
        from mos.artifact import check_norms
        from mos.fusion.model import read_fused

        (folder / FUSED_WEIGHTS).write_bytes(files["weights"])
        (folder / FUSED_REPORT).write_bytes(files["report"])
        facts = self._bases.get(base_key(manifest.base_fingerprint))
        model = read_fused(folder, facts)
        _check_same("sources", [str(one.ref) for one in manifest.lineage], [one.ref for one in model.sources])
        _check_same("base", manifest.base_fingerprint, dict(model.base_fingerprint))
        _check_vocabulary(model.adapter.vocabulary, {source.ref for source in manifest.lineage})
        if facts is None:
            return ("artifact", "lineage")
        words = [concept.embeddings for concept in model.adapter.vocabulary]
        ratio = limits.max_norm_ratio * len(model.sources)
        check_norms(model.adapter.linears, words, facts, folder, max_delta_ratio=ratio)
        return ("artifact", "lineage", "base", "norms")


def _read_fusion(path: Path) -> Package:
    from mos.fusion.model import read_fused

    model = read_fused(path, None)
    return Package(
        kind="fusion",
        files={"weights": (path / FUSED_WEIGHTS).read_bytes(), "report": (path / FUSED_REPORT).read_bytes()},
        base_name=model.base_name,
        base_family="",
        base_fingerprint=dict(model.base_fingerprint),
        rank=max((pair.rank for pairs in model.adapter.linears.values() for pair in pairs.values()), default=0),
        recipe={},
        sources=tuple(ConceptRef.parse(source.ref) for source in model.sources),
    )


def _recipe(card: "ArtifactCard") -> dict[str, str]:
    return {**card.recipe, "seed": str(card.seed), "tuned": " ".join(card.tuned)}


def _check_vocabulary(vocabulary: Sequence["ConceptWords"], sources: set[ConceptRef]) -> None:
    """A fused model's words are those of the concepts it was made of, and nobody else's."""
    for concept in vocabulary:
        ref = ConceptRef.parse(concept.ref)
        if ref not in sources:
            raise CheckFailedError(f"the fused model knows {ref}, of which it was not made")
        stem = ref.word.removesuffix(">")
        foreign = [word for word in concept.words if not word.startswith(f"{stem}-")]
        if concept.word != ref.word or foreign:
            words = " ".join((concept.word, *concept.words))
            raise CheckFailedError(f"the fused model calls {ref} {words}, expected {ref.word} and {stem}-...>")


def _check_same(what: str, promised: object, found: object) -> None:
    if promised != found:
        raise CheckFailedError(f"{what}: the manifest says {promised}, the weights say {found}")


def check_exists(path: Path) -> Path:
    """Return `path` if something is there; raises NotFoundError if not."""
    if not path.exists():
        raise NotFoundError(f"{path}: nothing there to publish")
    return path
