"""Publication grants: an owner who goes offline lets one run publish one concept for a while."""

from dataclasses import dataclass
from typing import Self

from mos.concept import ConceptRef
from registry.documents import Envelope, check_format
from registry.fields import Fields
from registry.keys import OwnerKey, PublicKey
from registry.layout import check_run_id

GRANT_FORMAT = 1
GRANT_TYPE = "application/vnd.mos.grant+json"


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What an owner allows.

    Attributes:
        ref: The concept that may be published, without a version.
        run_id: The run that may publish it, once.
        spec_sha256: Digest of what was submitted; the manifest's recipe must carry it as `spec_sha256`.
        publisher: The key that will sign the manifest: the cluster's.
        expires_at: After this time no new manifest is accepted.
    """

    ref: ConceptRef
    run_id: str
    spec_sha256: str
    publisher: PublicKey
    expires_at: str

    def sign(self, key: OwnerKey) -> Envelope:
        """The signed grant, to be handed to the cluster at submission."""
        document = {
            "format": GRANT_FORMAT,
            "owner": self.ref.owner,
            "concept": self.ref.name,
            "run_id": check_run_id(self.run_id),
            "spec_sha256": self.spec_sha256,
            "publisher": self.publisher.text,
            "expires_at": self.expires_at,
        }
        return Envelope.seal(document, GRANT_TYPE, key)

    @staticmethod
    def envelope(data: bytes, what: str) -> Envelope:
        """Parse an envelope of this type; the signature is not checked here."""
        return Envelope.from_bytes(data, GRANT_TYPE, f"grant in {what}")

    @classmethod
    def read(cls, envelope: Envelope) -> Self:
        """Parse the payload.

        Raises:
            FormatError: If it is malformed or of a newer format.
        """
        what = "publication grant"
        document = envelope.document(what)
        check_format(document, GRANT_FORMAT, what)
        fields = Fields(document, what)
        fields.integer("format", least=1)
        grant = cls(
            ref=ConceptRef(fields.text("owner"), fields.text("concept")),
            run_id=check_run_id(fields.text("run_id")),
            spec_sha256=fields.text("spec_sha256", pattern="[0-9a-f]{64}"),
            publisher=PublicKey(fields.text("publisher", longest=43)),
            expires_at=fields.time("expires_at"),
        )
        fields.finish()
        return grant
