"""The registry's face: open one, publish to it, and take from it, with every byte verified."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mos.concept import ConceptRef
from mos.errors import BadInputError, NotAllowedError, NotFoundError
from registry import deletion
from registry.administration import Administrator, found_registry
from registry.documents import Envelope, dump_json, sha256_hex
from registry.event import Action
from registry.fields import format_time
from registry.home import Home, write_atomically
from registry.indexer import Indexer, IndexReport, Scope
from registry.keys import OwnerKey, PublicKey, SigningKey
from registry.layout import REGISTRY, SELFTEST, check_run_id, user_prefix
from registry.licence import Licence, combined
from registry.manifest import MAX_PREVIEW_BYTES, FileEntry, Manifest, Source
from registry.objects import ObjectStore, open_store
from registry.publish import Publication, publish
from registry.reading import Shelf
from registry.records import Limits, OwnerRecord, RegistryRecord
from registry.resolving import Resolved, resolve
from registry.row import Row
from registry.runs import ObjectPrefix
from registry.search import MAX_HELD_ROWS, HeldRows, Query, run_query
from registry.similarity import Scorer, closest_rows
from registry.weights import FUSED_REPORT, FUSED_WEIGHTS, Package, WeightsCheck, check_exists, read_package

if TYPE_CHECKING:
    from mos.facts import BaseFacts

DEFAULT_LICENCE = "cc-by-4.0"
"""The terms of a concept whose publisher names none."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """What a publisher may say about a concept beside its weights.

    Attributes:
        title: One line; the artifact's own title if empty.
        description: A paragraph.
        tags: Lower-case words to find it by.
        previews: PNG or JPEG files.
        created_at: Time of signing (Unix seconds), now if None.
        spec_sha256: Digest of the submitted specification, needed with a grant.
    """

    title: str = ""
    description: str = ""
    tags: Sequence[str] = ()
    previews: Sequence[Path] = ()
    created_at: float | None = None
    spec_sha256: str | None = None


class Registry:
    """A shelf of concepts in a directory or an S3 bucket.

    Example::

        registry = Registry.open("shelf", create=True)
        key = registry.new_owner("alice")
        ref = registry.publish("robot.safetensors", ConceptRef.parse("alice/robot"), key=key, run_id="run-1")
        registry.index()
        path = registry.pull(ref)
    """

    def __init__(self, shelf: Shelf, clock: Callable[[], float] = time.time) -> None:
        self._shelf = shelf
        self._clock = clock
        self._tested: set[str] = set()
        self._held: tuple[str, HeldRows] | None = None  # rows of the catalogue with this sha256

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        create: bool = False,
        home: Home | Path | str | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open the registry at `url`.

        Args:
            url: A directory, `file:///path` or `s3://bucket/prefix`.
            create: Found the registry if there is none; this home then keeps its administrator's and indexer's keys.
            home: Keys, cache and memory; `MOS_HOME` or `~/.mos` if None.
            limits: Of a registry founded here.
            clock: Unix seconds.

        Raises:
            NotFoundError: If there is none and it was not to be founded.
            SignatureError: If it is another registry than was seen here before.
        """
        return cls.over(open_store(url, create=create), create=create, home=home, limits=limits, clock=clock)

    @classmethod
    def over(
        cls,
        store: ObjectStore,
        *,
        create: bool = False,
        home: Home | Path | str | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open the registry in a store; see `open`."""
        home = home if isinstance(home, Home) else Home(home)
        if create and store.head(REGISTRY) is None:
            found_registry(store, home, limits)
        return cls(Shelf.open(store, home), clock)

    @property
    def url(self) -> str:
        """Where it is."""
        return self._shelf.store.url

    @property
    def shelf(self) -> Shelf:
        """Verified reading of single documents."""
        return self._shelf

    @property
    def home(self) -> Home:
        """Keys, cache and memory of this client."""
        return self._shelf.home

    @property
    def record(self) -> RegistryRecord:
        """The registry's own record."""
        return self._shelf.record

    @property
    def may_index(self) -> bool:
        """Whether the indexer's key is in this home."""
        return self.home.has_registry_key(self.record.registry_id, "indexer")

    @property
    def administrator(self) -> Administrator:
        """Acts with the administrator's key; raises NotAllowedError if it is not in this home."""
        return Administrator(self._shelf, self._clock())

    def new_owner(self, owner: str) -> OwnerKey:
        """The key of `owner` in this home, made if there is none, and enrolled if it is not."""
        if not self.home.has_owner_key(owner):
            OwnerKey.create(owner, self.home.owner_key_path(owner))
        key = self.home.owner_key(owner)
        self.enrol(owner, key.public)
        return key

    def enrol(self, owner: str, public: PublicKey) -> OwnerRecord:
        """Enrol an owner; see `Administrator.enrol`."""
        return self.administrator.enrol(owner, public)

    def publish(
        self,
        path: Path | str,
        ref: ConceptRef,
        *,
        key: SigningKey,
        run_id: str,
        licence: Licence | str = "",
        details: Details | None = None,
        grant: Envelope | None = None,
        allow_unlisted: bool = False,
    ) -> ConceptRef:
        """Publish an ED-LoRA file or the directory of a fused model as the next version of `ref`.

        The strict check runs first. The same run published again is the version it already is.

        Args:
            path: The file or directory.
            ref: Owner and name; a version in it is ignored.
            key: The owner's key, or a cluster's together with a grant.
            run_id: The run that made it.
            licence: The terms, or the name of known ones; those of a fusion follow from its sources.
            details: Title, description, tags, previews.
            grant: The owner's permission, when `key` is not the owner's.
            allow_unlisted: Whether the sources of a fusion may be unlisted.

        Returns:
            The reference with its version.

        Raises:
            BadInputError: If it is no valid artifact.
            LicenceError: If a source of a fusion forbids merging.
            StoreBusyError: If the store fails; running it again converges.
        """
        package = read_package(check_exists(Path(path)))
        terms = Licence.named(licence or DEFAULT_LICENCE) if isinstance(licence, str) else licence
        lineage: tuple[Source, ...] = ()
        if package.kind == "fusion":
            lineage, terms = self._lineage(package.sources, allow_unlisted)
        told = details or Details()
        return self.publish_package(package, ref, key, run_id, terms, told, lineage=lineage, grant=grant).ref

    def publish_package(
        self,
        package: Package,
        ref: ConceptRef,
        key: SigningKey,
        run_id: str,
        licence: Licence,
        details: Details,
        *,
        lineage: Sequence[Source] = (),
        grant: Envelope | None = None,
    ) -> Publication:
        """Publish what was read and checked before; see `publish`."""
        if grant is None and key.name != ref.owner:
            raise NotAllowedError(f"{ref}: the key is {key.name}'s; only {ref.owner} publishes as {ref.owner}")
        if details.spec_sha256 is not None:
            package = replace(package, recipe={**package.recipe, "spec_sha256": details.spec_sha256})
        self._test_store(ref.owner)
        self._check_enrolled(ref.owner, key, grant)
        contents = [(role, data) for role, data in package.files.items()]
        contents += [("preview", _read_preview(path)) for path in details.previews]
        digests = [sha256_hex(data) for _, data in contents]
        entries = tuple(
            FileEntry(role=role, sha256=sha256, size_bytes=len(data))
            for (role, data), sha256 in zip(contents, digests, strict=True)
        )
        draft = _draft(package, ref, check_run_id(run_id), licence, details, entries, self._clock())
        draft = replace(draft, lineage=tuple(lineage), grant=grant)
        Manifest.from_payload(dump_json(draft.to_json()), draft.ref)  # all bounds, before anything is written
        files = {sha256: data for (_, data), sha256 in zip(contents, digests, strict=True)}
        return publish(self._shelf, draft, files, key, clock=self._clock)

    def index(
        self, scope: Scope = "hints", *, bases: Sequence["BaseFacts"] = (), scorers: Iterable[Scorer] = ()
    ) -> IndexReport:
        """Bring the catalogue up to date; needs the indexer's key.

        Args:
            scope: `hints`, `sweep` or `rebuild`; see `Indexer.run`.
            bases: Facts of bases to check weights against.
            scorers: Compute embeddings of the previews.

        Raises:
            NotAllowedError: If the indexer's key is not in this home.
        """
        if not self.may_index:
            raise NotAllowedError(f"{self.url}: the indexer's key is not in {self.home.root}")
        key = self.home.registry_key(self.record.registry_id, "indexer")
        return Indexer(self._shelf, key, WeightsCheck(bases), scorers=scorers, clock=self._clock).run(scope)

    def resolve(self, ref: ConceptRef | str, *, allow_unlisted: bool = False) -> Resolved:
        """Find a version and what it is worth; the newest listed one if `ref` names none.

        Args:
            ref: The concept.
            allow_unlisted: Accept any state but deleted and tampered; one's own versions always are.

        Raises:
            NotFoundError: If there is no such version.
            NotListedError: If it is not listed.
            SignatureError: If its manifest does not verify.
        """
        ref = ConceptRef.parse(ref) if isinstance(ref, str) else ref
        return resolve(self._shelf, ref, allow_unlisted=allow_unlisted, now=format_time(self._clock()))

    def pull(self, ref: ConceptRef | str | Resolved, *, allow_unlisted: bool = False) -> Path:
        """Fetch a version, verified, into the cache.

        Returns:
            The ED-LoRA file, or the directory of a fused model; not to be changed.

        Raises:
            IntegrityError: If the bytes are not those of the manifest.
        """
        found = ref if isinstance(ref, Resolved) else self.resolve(ref, allow_unlisted=allow_unlisted)
        manifest = found.manifest
        if manifest.kind == "concept":
            return self._pull_file(manifest, manifest.weights, ".safetensors")
        folder = self.home.fused_path(found.manifest_sha256)
        names = {"weights": FUSED_WEIGHTS, "report": FUSED_REPORT}
        for entry in manifest.files:
            path = folder / names.get(entry.role, "")
            if entry.role in names and not (path.is_file() and sha256_hex(path.read_bytes()) == entry.sha256):
                write_atomically(path, self._shelf.file(manifest.ref, entry))
        return folder

    def previews(self, found: Resolved) -> list[Path]:
        """The preview pictures of a version, verified, in the cache."""
        return [self._pull_file(found.manifest, entry, ".picture") for entry in found.manifest.previews]

    def search(self, query: Query | None = None) -> list[Row]:
        """Search the newest catalogue; everything listed, newest first, if no query is given."""
        catalogue, query = self._shelf.catalogue(), query or Query()
        if catalogue.snapshot.num_rows > MAX_HELD_ROWS:
            return run_query(catalogue.paths(), query)
        held = self._held
        if held is None or held[0] != catalogue.sha256:
            held = self._held = (catalogue.sha256, HeldRows(catalogue.rows()))
        return held[1].search(query)

    def similar(
        self,
        scorer: Scorer,
        *,
        images: Sequence[object] = (),
        prompts: Sequence[str] = (),
        query: Query | None = None,
    ) -> list[tuple[Row, float]]:
        """Listed versions whose previews are closest to pictures or prompts, with their cosine, closest first.

        Args:
            scorer: Compares; the catalogue must have embeddings by it.
            images: Pictures.
            prompts: Prompts.
            query: Narrows the search, and says how many are wanted; the 10 closest of all if None.

        Raises:
            BadInputError: If there is neither a picture nor a prompt.
            NotFoundError: If the catalogue has no embeddings by this scorer.
        """
        import numpy as np

        if not images and not prompts:
            raise BadInputError("similarity needs a picture or a prompt to compare with")
        parts = [scorer.image_features(images)] if images else []  # type: ignore[arg-type]
        parts += [scorer.text_features(prompts)] if prompts else []
        return closest_rows(self._shelf.catalogue(), scorer, np.concatenate(parts), query or Query(limit=10))

    def withdraw(self, ref: ConceptRef, action: Action, key: SigningKey, reason: str = "") -> list[ConceptRef]:
        """Yank, unyank, approve or delete a version, or all versions of a concept; see `deletion.withdraw`."""
        return deletion.withdraw(self._shelf, ref, action, key, reason, self._clock)

    def affected(self, ref: ConceptRef) -> list[Row]:
        """Every fusion in the catalogue that contains a concept (at any version, if `ref` names none)."""
        return deletion.affected(self._shelf.catalogue(), ref)

    def runs(self, run_id: str) -> ObjectPrefix:
        """The private objects of a run: checkpoints and staged artifacts."""
        return ObjectPrefix.of_run(self._shelf.store, run_id)

    def _lineage(self, refs: Sequence[ConceptRef], allow_unlisted: bool) -> tuple[tuple[Source, ...], Licence]:
        """The sources of a fused model, resolved again, and the terms that follow from them."""
        unpinned = next((ref for ref in refs if ref.version is None), None)
        if unpinned is not None:
            raise BadInputError(f"fused from {unpinned}, which names no version; fuse from the registry")
        found = [self.resolve(ref, allow_unlisted=allow_unlisted) for ref in refs]
        sources = tuple(
            Source(ref=one.ref, manifest_sha256=one.manifest_sha256, weights_sha256=one.manifest.weights.sha256)
            for one in found
        )
        return sources, combined({one.ref: one.manifest.licence for one in found})

    def _pull_file(self, manifest: Manifest, entry: FileEntry, suffix: str) -> Path:
        cached = self.home.cached(entry.sha256, suffix)
        if cached is not None:
            return cached
        return self.home.keep(self._shelf.file(manifest.ref, entry), entry.sha256, suffix)

    def _test_store(self, owner: str) -> None:
        """Test conditional writes once before this client's first publication, where the owner may write."""
        if not self._tested:
            self._shelf.store.check_conditional_writes(f"{user_prefix(owner)}{SELFTEST}")
            self._tested.add(owner)

    def _check_enrolled(self, owner: str, key: SigningKey, grant: Envelope | None) -> None:
        record = self._shelf.owner(owner)
        signer = grant.key_id if grant is not None else key.public.key_id
        if record.active_key is None or record.active_key.key_id != signer:
            raise NotAllowedError(f"owner {owner}: key {signer} is not the one enrolled; see mos owner show {owner}")
        if record.suspended:
            raise NotAllowedError(f"owner {owner}: suspended; ask whoever keeps {self.url}")


def _draft(
    package: Package,
    ref: ConceptRef,
    run_id: str,
    licence: Licence,
    details: Details,
    files: tuple[FileEntry, ...],
    now_s: float,
) -> Manifest:
    return Manifest(
        ref=ConceptRef(ref.owner, ref.name, 1),
        kind=package.kind,
        run_id=run_id,
        created_at=format_time(now_s if details.created_at is None else details.created_at),
        base_name=package.base_name,
        base_family=package.base_family,
        base_fingerprint=package.base_fingerprint,
        words=package.words,
        class_word=package.class_word,
        concept_kind=package.concept_kind,
        title=details.title or package.title,
        description=details.description,
        tags=tuple(dict.fromkeys(details.tags)),
        rank=package.rank,
        recipe=dict(package.recipe),
        files=files,
        licence=licence,
    )


def _read_preview(path: Path) -> bytes:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such preview") from error
    if not data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        raise BadInputError(f"{path}: a preview is a PNG or JPEG file")
    if len(data) > MAX_PREVIEW_BYTES:
        raise BadInputError(f"{path}: {len(data)} bytes, a preview has at most {MAX_PREVIEW_BYTES}")
    return data
