"""Opening the base, and what a command calls MODEL: a file, a fused directory, a published concept or no more."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mos.concept import ConceptRef
from mos.errors import BadInputError, NotFoundError

if TYPE_CHECKING:
    from mos.base_model import BaseModel
    from mos.edlora.adapter import Adapter
    from mos.facts import BaseFacts

LOCAL_OWNER = "local"
"""Owner of a concept opened from a file that was not given a name: robot.safetensors is `<local-robot>`."""

MODEL_HELP = (
    "MODEL is an ED-LoRA file, a fused directory, owner/name or owner/name@version of the registry, or base. "
    "A file is known as <local-STEM>, or as <owner-name> when written owner/name=FILE."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedModel:
    """An adapter and where it came from.

    Attributes:
        adapter: None for the bare base.
        label: The model as a recipe names it: reference or path, and digest.
    """

    adapter: Adapter | None
    label: str

    @property
    def words(self) -> tuple[str, ...]:
        """The words people may type."""
        return () if self.adapter is None else self.adapter.words


def open_base(name: str | None, *, device: str = "cpu") -> BaseModel:
    """Load the base a command names, without the libraries' progress bars and remarks on stderr.

    Raises:
        NotFoundError: If there is no such base.
        BadInputError: If it cannot be loaded.
    """
    import diffusers
    import transformers

    from mos.base_model import load_base

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    return load_base(name, device=device)


def open_model(name: str, facts: BaseFacts, registry_url: str, *, allow_unlisted: bool = False) -> OpenedModel:
    """Open a model by the name a person gave.

    Raises:
        NotFoundError: If there is no such file, directory or concept.
        BadInputError: If the file or directory is no valid model for this base.
    """
    if name == "base":
        return OpenedModel(adapter=None, label="base")
    given, equals, file = name.partition("=")
    if equals:
        return _open_file(Path(file), ConceptRef.parse(given), facts)
    path = Path(name).expanduser()
    if path.is_dir():
        return _open_fused(path, facts)
    if path.is_file():
        return _open_file(path, _local_ref(path), facts)
    if re.fullmatch(r"[^/\\.~]+/[^/\\]+", name):
        return _open_published(ConceptRef.parse(name), facts, registry_url, allow_unlisted)
    raise NotFoundError(
        f"{name}: no such file or directory; give an ED-LoRA file, a fused directory, owner/name or base"
    )


def named_file(name: str) -> tuple[str, Path | None]:
    """The name a person gave and the local file or folder behind MODEL; None for what the registry or base is."""
    given, equals, file = name.partition("=")
    path = Path(file if equals else name).expanduser()
    return (given if equals else ""), path if path.exists() and name != "base" else None


def _local_ref(path: Path) -> ConceptRef:
    stem = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:40].strip("-")
    if not stem:
        raise BadInputError(f"{path}: no word can be made of this file name; write owner/name={path}")
    return ConceptRef(LOCAL_OWNER, stem)


def _open_file(path: Path, ref: ConceptRef, facts: BaseFacts) -> OpenedModel:
    from mos.artifact import read_artifact

    if not path.is_file():
        raise NotFoundError(f"{path}: no such file; give an ED-LoRA file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return OpenedModel(adapter=read_artifact(path, facts).adapter(ref), label=f"{ref} {path.name} sha256:{digest}")


def _open_fused(directory: Path, facts: BaseFacts) -> OpenedModel:
    from mos.fusion.model import read_fused

    model = read_fused(directory, facts)
    weights = sorted(directory.glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in weights)).hexdigest()
    return OpenedModel(adapter=model.adapter, label=f"fused {directory.name} sha256:{digest}")


def _open_published(ref: ConceptRef, facts: BaseFacts, registry_url: str, allow_unlisted: bool) -> OpenedModel:
    from registry import Registry

    registry = Registry.open(registry_url)
    resolved = registry.resolve(ref, allow_unlisted=allow_unlisted)
    path = registry.pull(resolved, allow_unlisted=allow_unlisted)
    if path.is_dir():
        return replace(_open_fused(path, facts), label=f"{resolved.ref} sha256:{resolved.weights_sha256}")
    return replace(_open_file(path, resolved.ref, facts), label=f"{resolved.ref} sha256:{resolved.weights_sha256}")
