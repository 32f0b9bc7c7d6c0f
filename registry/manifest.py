"""The manifest of a version: what was published, by whom, under which terms, signed over exact bytes."""

from dataclasses import dataclass
from typing import Literal, Self

from mos.concept import CONCEPT_KINDS, ConceptRef
from mos.errors import MosError
from registry.documents import Envelope, Json, check_format, parse_json, sha256_hex
from registry.errors import FormatError, IntegrityError
from registry.fields import Fields
from registry.grant import Grant
from registry.keys import SigningKey
from registry.layout import check_run_id
from registry.licence import Licence

MANIFEST_FORMAT = 1
MANIFEST_TYPE = "application/vnd.mos.manifest+json"

MAX_PREVIEW_BYTES = 4 << 20
"""A preview picture may be this long."""

_SHA256 = "[0-9a-f]{64}"
_ROLES = ("weights", "report", "preview")
_TAG = "[a-z0-9][a-z0-9-]{0,39}"


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a version.

    Attributes:
        role: `weights` (exactly one), `report` (a fusion's fused.json) or `preview` (a picture).
        sha256: Of its bytes; also its place in the owner's prefix.
        size_bytes: Its length.
    """

    role: str
    sha256: str
    size_bytes: int

    def to_json(self) -> Json:
        """As stored."""
        return {"role": self.role, "sha256": self.sha256, "size_bytes": self.size_bytes}


@dataclass(frozen=True, kw_only=True)
class Source:
    """One concept a fused model was made of, pinned by digests."""

    ref: ConceptRef
    manifest_sha256: str
    weights_sha256: str

    def to_json(self) -> Json:
        """As stored."""
        return {
            "ref": str(self.ref),
            "manifest_sha256": self.manifest_sha256,
            "weights_sha256": self.weights_sha256,
        }


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything said about one version.

    Attributes:
        ref: Owner, name and version.
        kind: `concept` for one ED-LoRA, `fusion` for a fused model.
        run_id: The run that made it; the same run published twice is one version.
        created_at: When the publisher says it was signed.
        base_name: What the base model is called.
        base_family: `sd1`, `sd2` or `sdxl`; may be empty when the artifact does not say.
        base_fingerprint: Component -> sha256 of its weights.
        words: The concept's own two words; empty for a fusion.
        class_word: The class the concept belongs to; empty for a fusion.
        concept_kind: What it shows (`mos.concept.CONCEPT_KINDS`); empty for a fusion.
        title: One line for people.
        description: A paragraph for people.
        tags: Lower-case words to find it by.
        rank: Rank of its low-rank pairs (the sum of ranks for a fusion).
        recipe: How it was made, name to value.
        files: Weights, report, previews.
        licence: The terms.
        lineage: The sources of a fused model, empty for a concept.
        grant: The owner's permission, when a cluster signed in the owner's absence.
    """

    ref: ConceptRef
    kind: Literal["concept", "fusion"]
    run_id: str
    created_at: str
    base_name: str
    base_family: str
    base_fingerprint: dict[str, str]
    words: tuple[str, ...]
    class_word: str
    concept_kind: str
    title: str
    description: str
    tags: tuple[str, ...]
    rank: int
    recipe: dict[str, str]
    files: tuple[FileEntry, ...]
    licence: Licence
    lineage: tuple[Source, ...] = ()
    grant: Envelope | None = None

    @property
    def weights(self) -> FileEntry:
        """The file with the weights."""
        return next(file for file in self.files if file.role == "weights")

    @property
    def previews(self) -> tuple[FileEntry, ...]:
        """The pictures."""
        return tuple(file for file in self.files if file.role == "preview")

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size_bytes for file in self.files)

    def to_json(self) -> Json:
        """The payload that is signed."""
        return {
            "format": MANIFEST_FORMAT,
            "owner": self.ref.owner,
            "concept": self.ref.name,
            "version": self.ref.version,
            "kind": self.kind,
            "run_id": self.run_id,
            "created_at": self.created_at,
            "base": {"name": self.base_name, "family": self.base_family, "fingerprint": self.base_fingerprint},
            "words": list(self.words),
            "class_word": self.class_word,
            "concept_kind": self.concept_kind,
            "title": self.title,
            "description": self.description,
            "tags": list(self.tags),
            "rank": self.rank,
            "recipe": self.recipe,
            "files": [file.to_json() for file in self.files],
            "licence": self.licence.to_json(),
            "lineage": [source.to_json() for source in self.lineage],
            "grant": None if self.grant is None else self.grant.to_bytes().decode(),
        }

    def sign(self, key: SigningKey) -> bytes:
        """The envelope's bytes; the same manifest and key give the same bytes."""
        return Envelope.seal(self.to_json(), MANIFEST_TYPE, key).to_bytes()

    @classmethod
    def read(cls, envelope: Envelope, ref: ConceptRef) -> Self:
        """Parse the payload of an envelope; see `from_payload`."""
        return cls.from_payload(envelope.payload, ref)

    @classmethod
    def from_payload(cls, payload: bytes, ref: ConceptRef) -> Self:
        """Parse what is signed; signatures are not checked here.

        Raises:
            FormatError: If it is malformed, of a newer format, or of another version than `ref`.
        """
        what = f"manifest of {ref}"
        document = parse_json(payload, what)
        check_format(document, MANIFEST_FORMAT, what)
        fields = Fields(document, what)
        try:
            return cls._parse(fields, ref)
        except FormatError:
            raise
        except MosError as error:
            raise FormatError(f"{what}: {error}") from error

    @classmethod
    def _parse(cls, fields: Fields, ref: ConceptRef) -> Self:
        fields.integer("format", least=1)
        named = ConceptRef(fields.text("owner"), fields.text("concept"), fields.integer("version", least=1))
        if named != ref:
            raise FormatError(f"{fields.what}: the document speaks of {named}")
        kind = fields.text("kind", pattern="concept|fusion")
        base = fields.nested("base") or Fields(None, fields.what)
        manifest = cls(
            ref=named,
            kind="concept" if kind == "concept" else "fusion",
            run_id=check_run_id(fields.text("run_id")),
            created_at=fields.time("created_at"),
            base_name=base.text("name"),
            base_family=base.text("family", longest=40),
            base_fingerprint=base.mapping("fingerprint", most=8),
            words=fields.texts("words", most=64, longest=100),
            class_word=fields.text("class_word", longest=60),
            concept_kind=fields.text("concept_kind", longest=20),
            title=fields.text("title", longest=120),
            description=fields.text("description", longest=4000),
            tags=fields.texts("tags", most=32, pattern=_TAG),
            rank=fields.integer("rank", most=100_000),
            recipe=fields.mapping("recipe", most=128, longest=1000),
            files=_read_files(fields),
            licence=Licence.read(fields.nested("licence") or Fields(None, fields.what)),
            lineage=_read_lineage(fields),
            grant=_read_grant(fields),
        )
        base.finish()
        fields.finish()
        _check_kind(manifest, fields.what)
        return manifest


@dataclass(frozen=True, kw_only=True)
class SignedManifest:
    """A manifest as it lies in the registry: parsed, with its envelope and the sha256 of its exact bytes."""

    manifest: Manifest
    envelope: Envelope
    sha256: str

    @classmethod
    def from_bytes(cls, data: bytes, ref: ConceptRef) -> Self:
        """Parse an object; signatures are not checked here.

        Raises:
            FormatError: If it is no manifest of `ref`.
        """
        envelope = Envelope.from_bytes(data, MANIFEST_TYPE, f"manifest of {ref}")
        return cls(manifest=Manifest.read(envelope, ref), envelope=envelope, sha256=sha256_hex(data))


def check_digest(data: bytes, entry: FileEntry, what: str) -> bytes:
    """Return `data` if it is the file a manifest promised.

    Raises:
        IntegrityError: If length or sha256 differ.
    """
    if len(data) != entry.size_bytes or sha256_hex(data) != entry.sha256:
        raise IntegrityError(
            f"{what}: the {entry.role} read ({len(data)} bytes, sha256 {sha256_hex(data)[:12]}…) are not those of the "
            f"manifest ({entry.size_bytes} bytes, sha256 {entry.sha256[:12]}…); ask the owner to publish them again"
        )
    return data


def _read_files(fields: Fields) -> tuple[FileEntry, ...]:
    files = []
    for item in fields.items("files", most=32):
        inner = Fields(item, f"{fields.what}, file")
        files.append(
            FileEntry(
                role=inner.text("role", pattern="|".join(_ROLES)),
                sha256=inner.text("sha256", pattern=_SHA256),
                size_bytes=inner.integer("size_bytes", least=1),
            )
        )
        inner.finish()
    return tuple(files)


def _read_lineage(fields: Fields) -> tuple[Source, ...]:
    sources = []
    for item in fields.items("lineage", most=256):
        inner = Fields(item, f"{fields.what}, source")
        sources.append(
            Source(
                ref=ConceptRef.parse(inner.text("ref")),
                manifest_sha256=inner.text("manifest_sha256", pattern=_SHA256),
                weights_sha256=inner.text("weights_sha256", pattern=_SHA256),
            )
        )
        inner.finish()
    return tuple(sources)


def _read_grant(fields: Fields) -> Envelope | None:
    text = fields.optional_text("grant", longest=20_000)
    return None if text is None else Grant.envelope(text.encode(), fields.what)


def _check_kind(manifest: Manifest, what: str) -> None:
    """Insist on what a concept has and a fusion has not, and the reverse."""
    roles = [file.role for file in manifest.files]
    if roles.count("weights") != 1:
        raise FormatError(f"{what}: {roles.count('weights')} weight files, expected one")
    if any(source.ref.version is None for source in manifest.lineage):
        raise FormatError(f"{what}: a source without its version")
    if manifest.kind == "fusion":
        if not manifest.lineage or roles.count("report") != 1:
            raise FormatError(f"{what}: a fusion has sources and one report")
    elif manifest.lineage or "report" in roles or not manifest.words or manifest.concept_kind not in CONCEPT_KINDS:
        raise FormatError(f"{what}: a concept has its words and its kind, and neither sources nor a report")
