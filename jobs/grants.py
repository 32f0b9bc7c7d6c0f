"""Publishing while the owner is away: a grant signed at submission, used by the cluster's own key.

The owner's key stays where it is. The grant names the run, the concept, the digest of what was submitted, the
cluster's public key and an end; the indexer checks all of it (docs/registry.md).
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.head import PUBLISHER_VARIABLE, find_head, publisher_key_path
from jobs.specs import ConceptSpec
from mos.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from cluster.checkpoint import RunPlace
    from cluster.runs import RunRecord
    from jobs.train_concept import PreparedConcept
    from registry import Registry

GRANT = "job/grant.json"
_DAY_S = 86_400


def publisher_of(address: str, given: str) -> str:
    """The public key a cluster publishes with: the one named, or that of the head started here.

    Raises:
        UsageError: If none is named and the cluster is somebody else's.
    """
    if given:
        return given
    head = find_head()
    if head is None or address != head.dashboard_url:
        raise UsageError(f"--grant-days needs --publisher, the public key of the cluster at {address}; ask its keeper")
    from registry.keys import SigningKey

    return SigningKey.read(publisher_key_path()).public.text


def sign_grant(prepared: "PreparedConcept", registry: "Registry", publisher: str, days: int) -> bytes:
    """Let the cluster with this public key publish this run's concept, for so many days.

    Raises:
        NotFoundError: If the owner's key is not on this machine.
    """
    from registry.fields import format_time
    from registry.grant import Grant
    from registry.keys import PublicKey

    spec = prepared.spec
    key = registry.new_owner(spec.owner) if registry.may_index else registry.home.owner_key(spec.owner)
    grant = Grant(
        ref=spec.ref,
        run_id=prepared.run_id,
        spec_sha256=prepared.spec_sha256,
        publisher=PublicKey(publisher),
        expires_at=format_time(time.time() + days * _DAY_S),
    )
    return grant.sign(key).to_bytes()


def grant_in_force(record: "RunRecord") -> bytes | None:
    """The grant a run was sent with, if it still holds: signed for this very run, it may be sent with it again."""
    if not record.spec.get("granted"):
        return None
    from cluster.places import RegistryPlaces
    from registry.errors import ObjectMissingError
    from registry.fields import check_time
    from registry.grant import Grant

    try:
        content = RegistryPlaces(record.spec["registry"])(record.run_id).get(GRANT)
    except ObjectMissingError:
        return None
    grant = Grant.read(Grant.envelope(content, record.run_id))
    return content if check_time(grant.expires_at, "publication grant") > time.time() else None


def publish_granted(place: "RunPlace", run_id: str, registry_url: str, request: Mapping[str, Any]) -> str:
    """On the cluster: publish a staged concept with the cluster's key; returns it with its version.

    Raises:
        NotFoundError: If this cluster has no key to publish with.
        MosError: If the artifact, the grant or the registry will not have it.
    """
    from jobs.train_concept import publish_staged
    from registry import Registry
    from registry.grant import Grant
    from registry.keys import SigningKey

    path = os.environ.get(PUBLISHER_VARIABLE)
    if not path:
        raise NotFoundError(f"this cluster has no key to publish with; its keeper sets {PUBLISHER_VARIABLE} to a file")
    trained = publish_staged(
        run_id,
        ConceptSpec.from_json(request["spec"]),
        Registry.open(registry_url),
        request["spec_sha256"],
        key=SigningKey.read(Path(path)),
        grant=Grant.envelope(place.get(GRANT), run_id),
    )
    return str(trained.ref)
