"""What `mos export` is given: a file, a fused directory or a published concept, with all that is known of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.opening import open_model
from mos.concept import ConceptRef
from mos.errors import BadInputError

if TYPE_CHECKING:
    from mos.artifact import ArtifactCard
    from mos.edlora.adapter import Adapter
    from mos.facts import BaseFacts
    from registry.resolving import Resolved

_PUBLISHED = re.compile(r"[^/\\.~=]+/[^/\\=]+")


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportSource:
    """A model to export.

    Args:
        adapter: LoRA and words.
        name: of the files to write.
        title: one line.
        card: of a single concept.
        sources: of a fused model.
        description: a paragraph, may be empty.
        licence: its name, empty if unknown.
        credit: whom to name.
        allows_derivatives: False where the licence forbids merging.
        tags: words to find it by.
        previews: pictures.
        recipe: how it was made, for the file's metadata.
    """

    adapter: Adapter
    name: str
    title: str
    card: ArtifactCard | None = None
    sources: tuple[str, ...] = ()
    description: str = ""
    licence: str = ""
    credit: Sequence[str] = ()
    allows_derivatives: bool = True
    tags: Sequence[str] = ()
    previews: Sequence[Path] = ()
    recipe: Mapping[str, str] = field(default_factory=dict)


def open_source(model: str, facts: BaseFacts, registry_url: str, *, allow_unlisted: bool = False) -> ExportSource:
    """Open what a person named, as `mos sample` does, and gather what is known of it.

    Raises:
        NotFoundError: If there is no such file, directory or concept.
        BadInputError: If it is no model for this base, or is the bare base.
    """
    path = Path(model.partition("=")[2] or model).expanduser()
    if not path.exists() and _PUBLISHED.fullmatch(model):
        return _published(ConceptRef.parse(model), facts, registry_url, allow_unlisted)
    adapter = open_model(model, facts, registry_url).adapter
    if adapter is None:
        raise BadInputError(f"{model}: nothing to export; give a concept's file, a fused directory or owner/name")
    return _fused(adapter, path) if path.is_dir() else _single(adapter, path)


def _single(adapter: Adapter, path: Path, **known: Any) -> ExportSource:
    from mos.artifact import read_artifact_header

    card = read_artifact_header(path).card
    word = adapter.vocabulary[0].word.strip("<>")
    defaults: dict[str, Any] = {"name": word[:40].strip("-"), "title": card.title or word}
    return ExportSource(adapter=adapter, card=card, recipe=dict(card.recipe), **(defaults | known))


def _fused(adapter: Adapter, path: Path, **known: Any) -> ExportSource:
    from mos.fusion.model import read_fused_record

    record = read_fused_record(path)
    sources = tuple(str(source["ref"]) for source in record["sources"])
    defaults: dict[str, Any] = {"name": _file_name(path.resolve().name), "title": f"Fusion of {', '.join(sources)}"}
    recipe = {str(key): str(value) for key, value in record["config"].items()}
    return ExportSource(adapter=adapter, sources=sources, recipe=recipe, **(defaults | known))


def _published(ref: ConceptRef, facts: BaseFacts, registry_url: str, allow_unlisted: bool) -> ExportSource:
    from mos.artifact import read_artifact
    from mos.fusion.model import read_fused
    from registry import Registry

    registry = Registry.open(registry_url)
    found = registry.resolve(ref, allow_unlisted=allow_unlisted)
    path = registry.pull(found)
    known = _known(found) | {"previews": tuple(registry.previews(found))}
    if path.is_dir():
        return _fused(read_fused(path, facts).adapter, path, **known)
    return _single(read_artifact(path, facts).adapter(found.ref), path, **known)


def _known(found: Resolved) -> dict[str, Any]:
    manifest = found.manifest
    return {
        "name": f"{found.ref.owner}-{found.ref.name}"[:40].strip("-"),
        "title": manifest.title or str(found.ref),
        "description": manifest.description,
        "licence": manifest.licence.name,
        "credit": manifest.licence.credit,
        "allows_derivatives": manifest.licence.derivatives,
        "tags": manifest.tags,
    }


def _file_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "fused"
