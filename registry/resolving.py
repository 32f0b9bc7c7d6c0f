"""Resolving: from a name to a version that may be used, and why."""

from dataclasses import dataclass

from mos.concept import ConceptRef
from mos.errors import NotFoundError
from registry.deletion import drop_cached
from registry.errors import IntegrityError, NotListedError, ObjectMissingError
from registry.manifest import Manifest, SignedManifest
from registry.reading import Catalogue, Shelf
from registry.row import Row, State
from registry.trust import accepted_events, check_manifest_signature


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """One version, verified.

    Attributes:
        ref: With its version.
        manifest: What its owner says of it.
        manifest_sha256: Of the manifest's bytes.
        state: Where it stands now.
        reason: Why it is not listed, if it is not.
        checks: Names of the checks it passed.
    """

    ref: ConceptRef
    manifest: Manifest
    manifest_sha256: str
    state: State
    reason: str
    checks: tuple[str, ...]

    @property
    def weights_sha256(self) -> str:
        """Of the weights' bytes."""
        return self.manifest.weights.sha256


def resolve(shelf: Shelf, ref: ConceptRef, *, allow_unlisted: bool, now: str) -> Resolved:
    """Find a version; see `Registry.resolve`."""
    catalogue = shelf.catalogue()
    own = shelf.home.has_owner_key(ref.owner)
    if ref.version is None:
        ref = _newest(shelf, catalogue, ref, own or allow_unlisted)
    row = catalogue.version(ref)
    signed = shelf.manifest(ref)
    found = _state(shelf, signed, row, now)
    if found.state is State.DELETED:
        drop_cached(shelf.home, found.manifest, found.manifest_sha256)
        raise NotFoundError(f"{ref}: deleted{_because(found.reason)}")
    if found.state is State.TAMPERED:
        raise IntegrityError(f"{ref}: tampered with: {found.reason}; use another version")
    if found.state is not State.LISTED and not (own or allow_unlisted):
        raise NotListedError(
            f"{ref}: {found.state.value}{_because(found.reason)}, not listed; --allow-unlisted takes it all the same"
        )
    return found


def _state(shelf: Shelf, signed: SignedManifest, row: Row | None, now: str) -> Resolved:
    """The state the catalogue gives, unless the manifest or a newer event says worse."""
    ref = signed.manifest.ref
    owner = shelf.owner(ref.owner)
    check_manifest_signature(signed, owner, now if row is None else row.first_seen_at, shelf.record.limits)
    state, reason = (State.UPLOADED, "not indexed yet") if row is None else (State(row.state), row.reason)
    if row is not None and row.manifest_sha256 != signed.sha256:
        state, reason = State.TAMPERED, "its manifest changed after it was first seen"
    num_known = 0 if row is None else row.num_events
    events, _ = shelf.events(ref, num_known)
    standing, _ = accepted_events(signed, events, owner, shelf.record.administrator, num_known)
    if standing.deleted:
        state, reason = State.DELETED, standing.reason
    elif standing.yanked and state in (State.LISTED, State.CHECKED):
        state, reason = State.YANKED, standing.reason
    return Resolved(
        ref=ref,
        manifest=signed.manifest,
        manifest_sha256=signed.sha256,
        state=state,
        reason=reason,
        checks=() if row is None else tuple(row.checks),
    )


def _newest(shelf: Shelf, catalogue: Catalogue, ref: ConceptRef, accept_any: bool) -> ConceptRef:
    """The newest listed version; or, if any will do, the newest that is neither deleted nor tampered with."""
    rows = catalogue.concept(ref)
    listed = [row.version for row in rows if row.state == State.LISTED]
    unusable = {row.version for row in rows if row.state in (State.DELETED, State.TAMPERED)}
    candidates = listed
    if accept_any:
        candidates = [version for version in shelf.versions(ref) if version not in unusable]
    if candidates:
        return ref.at(max(candidates))
    if rows or _first_exists(shelf, ref):
        states = ", ".join(sorted({row.state for row in rows})) or State.UPLOADED.value
        raise NotListedError(
            f"{ref}: no version is listed (they are {states}); --allow-unlisted takes one all the same"
        )
    raise NotFoundError(f"{ref}: no such concept in {shelf.store.url}; see mos concept ls")


def _first_exists(shelf: Shelf, ref: ConceptRef) -> bool:
    try:
        shelf.manifest(ref.at(1))
    except ObjectMissingError:
        return False
    return True


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""
