"""What people ask for, as data: the spec of a concept or of a fusion, from options or a TOML file.

A spec's digest names its run: the same spec with the same pictures is the same run, however often it is
submitted. A TOML file holds the fields of one spec::

    kind = "concept"
    owner = "alice"
    name = "robot"
    class_word = "robot"
    pictures = "photos/robot"
    [options]
    steps = 300
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from mos.concept import CONCEPT_KINDS, ConceptRef, check_name
from mos.errors import BadInputError

SPEC_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ConceptSpec:
    """One concept to train and publish.

    Attributes:
        owner: Who trains it.
        name: The concept's name, unique among its owner's.
        class_word: The class it belongs to, one word the base knows.
        pictures: Folder with its pictures, and optionally captions and masks.
        kind: What it shows; it chooses templates and prompts.
        preset: Named recipe; empty lets the base decide.
        options: Training options that differ from the recipe.
        base: Folder or hub id of the base; empty for the small world.
        seed: Of everything random.
        title: One line for people; empty for none.
        licence: SPDX name or "proprietary"; empty for the registry's default.
        num_seeds: Train so many seeds side by side and keep the one whose words alone fit the pictures best.
        grid_steps: After these steps draw the concept at several LoRA scales; 0 stands for the last.
    """

    owner: str
    name: str
    class_word: str
    pictures: str
    kind: str = "object"
    preset: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""
    seed: int = 0
    title: str = ""
    licence: str = ""
    num_seeds: int = 1
    grid_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.owner, "owner")
        if not 1 <= self.num_seeds <= 16:
            raise BadInputError(f"{self.num_seeds} seeds: expected 1 to 16")
        if any(step < 0 for step in self.grid_steps):
            raise BadInputError(f"grids at steps {list(self.grid_steps)}: expected 0 (the last) or more")
        check_name(self.name, "concept")
        if self.kind not in CONCEPT_KINDS:
            raise BadInputError(f"kind {self.kind!r}: expected one of {', '.join(CONCEPT_KINDS)}")
        if not self.class_word or not self.pictures:
            raise BadInputError("a concept needs a class word and a folder of pictures; give --class and --pictures")

    @property
    def ref(self) -> ConceptRef:
        """The concept, without a version."""
        return ConceptRef(self.owner, self.name)

    def digest(self, pictures_sha256: str) -> str:
        """Digest of everything that shapes the result: not the pictures' place on this machine, not the grids."""
        shaping = asdict(self) | {"pictures": pictures_sha256}
        del shaping["grid_steps"]
        return _digest("concept", shaping)

    def run_id(self, pictures_sha256: str) -> str:
        """The run this spec is, with these pictures."""
        return f"concept-{self.owner}-{self.name}-{self.digest(pictures_sha256)[:12]}"

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON can hold it."""
        return {"kind_of_spec": "concept", "format": SPEC_FORMAT} | asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            BadInputError: If a field is unknown or missing, or of a newer format.
        """
        values = _fields_of(cls, data, "concept")
        return cls(**values | {"grid_steps": tuple(values.get("grid_steps", ()))})


@dataclass(frozen=True, kw_only=True)
class FusionSpec:
    """Several concepts of a registry to fuse into one model.

    Attributes:
        concepts: At least one `owner/name` or `owner/name@version`.
        out: Folder for the fused model.
        options: Fusion options that differ from the defaults.
        base: Folder or hub id of the base; empty for the small world.
        owner: Who asks for it; needed to publish.
        publish: `owner/name` to publish the fused model as; empty for not.
        allow_unlisted: Also fuse what the catalogue does not list.
    """

    concepts: tuple[str, ...]
    out: str
    options: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""
    owner: str = ""
    publish: str = ""
    allow_unlisted: bool = False

    def __post_init__(self) -> None:
        refs = self.refs
        if not refs:
            raise BadInputError("a fusion needs at least one concept; give --from-registry owner/name ...")
        names = [(ref.owner, ref.name) for ref in refs]
        twice = sorted({f"{owner}/{name}" for owner, name in names if names.count((owner, name)) > 1})
        if twice:
            raise BadInputError(f"{', '.join(twice)}: named twice; a concept goes into a fusion once, at one version")

    @property
    def refs(self) -> tuple[ConceptRef, ...]:
        """The concepts in the order given."""
        return tuple(ConceptRef.parse(text) for text in self.concepts)

    def run_id(self, digests: Mapping[str, str]) -> str:
        """The run this spec is, with concepts of these digests."""
        data = asdict(self) | {"digests": dict(sorted(digests.items())), "out": str(Path(self.out).resolve())}
        return f"fusion-{self.refs[0].owner}-{_digest('fusion', data)[:12]}"

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON can hold it."""
        return {"kind_of_spec": "fusion", "format": SPEC_FORMAT} | asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        values = _fields_of(cls, data, "fusion")
        return cls(**values | {"concepts": tuple(values.get("concepts", ()))})


def load_spec(path: Path) -> ConceptSpec | FusionSpec:
    """Read a spec from a TOML file; relative folders are relative to the file.

    Raises:
        BadInputError: If the file is no TOML or not a spec.
    """
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInputError(f"{path}: not readable as TOML: {error}") from error
    kind = data.pop("kind", None)
    if kind not in ("concept", "fusion"):
        raise BadInputError(f'{path}: kind is {kind!r}; expected kind = "concept" or kind = "fusion"')
    if "shows" in data:
        data["kind"] = data.pop("shows")
    folder_field = "pictures" if kind == "concept" else "out"
    if folder_field in data:
        data[folder_field] = str(path.parent / data[folder_field])
    document = {"kind_of_spec": kind, "format": SPEC_FORMAT} | data
    return ConceptSpec.from_json(document) if kind == "concept" else FusionSpec.from_json(document)


def _fields_of(cls: type, data: Mapping[str, Any], kind: str) -> dict[str, Any]:
    values = dict(data)
    found, version = values.pop("kind_of_spec", kind), values.pop("format", SPEC_FORMAT)
    if version > SPEC_FORMAT:
        raise BadInputError(f"spec of format {version}: this program reads up to {SPEC_FORMAT}; update mos")
    known = {item.name for item in fields(cls)}
    unknown = sorted(values.keys() - known)
    if found != kind or unknown:
        raise BadInputError(f"{kind} spec: unknown {', '.join(unknown) or found}; known are {', '.join(sorted(known))}")
    try:
        cls(**values)
    except TypeError as error:
        raise BadInputError(f"{kind} spec: {str(error).partition('__init__() ')[2] or error}") from error
    return values


def _digest(kind: str, data: Mapping[str, Any]) -> str:
    document = json.dumps([kind, SPEC_FORMAT, data], sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(document.encode()).hexdigest()
