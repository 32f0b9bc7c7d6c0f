"""Events after publication: yank, unyank, delete, approve; numbered, signed, never overwritten."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, cast

from mos.concept import ConceptRef
from registry.documents import Envelope, check_format, sha256_hex
from registry.fields import Fields
from registry.keys import SigningKey

EVENT_FORMAT = 1
EVENT_TYPE = "application/vnd.mos.event+json"

Action = Literal["yank", "unyank", "delete", "approve"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened to a version.

    Attributes:
        ref: The version.
        number: 1 for its first event; there are no gaps.
        action: yank and unyank hide and show it; delete removes its bytes for good; approve lists it where
            the registry wants an administrator's approval.
        reason: For people; empty if none was given.
        at: When the signer says it happened.
        manifest_sha256: The manifest it speaks of, so that it cannot be moved to another.
    """

    ref: ConceptRef
    number: int
    action: Action
    reason: str
    at: str
    manifest_sha256: str

    def sign(self, key: SigningKey) -> bytes:
        """The envelope's bytes."""
        document = {
            "format": EVENT_FORMAT,
            "owner": self.ref.owner,
            "concept": self.ref.name,
            "version": self.ref.version,
            "number": self.number,
            "action": self.action,
            "reason": self.reason,
            "at": self.at,
            "manifest_sha256": self.manifest_sha256,
        }
        return Envelope.seal(document, EVENT_TYPE, key).to_bytes()

    @classmethod
    def read(cls, envelope: Envelope, ref: ConceptRef, number: int) -> Self:
        """Parse the payload; the signature is not checked here.

        Raises:
            FormatError: If it is malformed, of a newer format, or of another place.
        """
        what = f"event {number} of {ref}"
        document = envelope.document(what)
        check_format(document, EVENT_FORMAT, what)
        fields = Fields(document, what)
        fields.integer("format", least=1)
        event = cls(
            ref=ConceptRef(
                fields.text("owner", pattern=ref.owner),
                fields.text("concept", pattern=ref.name),
                fields.integer("version", least=ref.version or 1, most=ref.version or 1),
            ),
            number=fields.integer("number", least=number, most=number),
            action=cast(Action, fields.text("action", pattern="yank|unyank|delete|approve")),
            reason=fields.text("reason", longest=500),
            at=fields.time("at"),
            manifest_sha256=fields.text("manifest_sha256", pattern="[0-9a-f]{64}"),
        )
        fields.finish()
        return event


@dataclass(frozen=True, kw_only=True)
class SignedEvent:
    """An event as it lies in the registry."""

    event: Event
    envelope: Envelope
    sha256: str

    @classmethod
    def from_bytes(cls, data: bytes, ref: ConceptRef, number: int) -> Self:
        """Parse an object; the signature is not checked here."""
        envelope = Envelope.from_bytes(data, EVENT_TYPE, f"event {number} of {ref}")
        return cls(event=Event.read(envelope, ref, number), envelope=envelope, sha256=sha256_hex(data))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a version's events add up to.

    Attributes:
        yanked: Hidden by its owner or by the administrator.
        deleted: Its bytes are gone for good.
        approved: An administrator has approved it.
        reason: Why it was yanked or deleted.
    """

    yanked: bool = False
    deleted: bool = False
    approved: bool = False
    reason: str = ""


def standing(events: Sequence[tuple[Event, bool]]) -> Standing:
    """Replay events in order.

    A deletion is final; an owner cannot lift the administrator's yank.

    Args:
        events: Each with whether the administrator signed it.
    """
    yanked_by = {True: False, False: False}
    approved, reason = False, ""
    for event, by_administrator in events:
        if event.action == "delete":
            return Standing(deleted=True, reason=event.reason)
        if event.action == "yank":
            yanked_by[by_administrator] = True
            reason = event.reason
        elif event.action == "unyank":
            yanked_by = {True: yanked_by[True] and not by_administrator, False: False}
        else:
            approved = True
    yanked = any(yanked_by.values())
    return Standing(yanked=yanked, approved=approved, reason=reason if yanked else "")
