"""Licences and consent as data: what may be fused, and which terms a fused model carries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from mos.concept import ConceptRef
from mos.errors import BadInputError
from registry.documents import Json
from registry.errors import LicenceError
from registry.fields import Fields


@dataclass(frozen=True, kw_only=True)
class Person:
    """A person the pictures show.

    Attributes:
        label: What the owner calls the person; a pseudonym does.
        consent_sha256: sha256 of the consent record, which stays with the owner; None if there is none.
    """

    label: str
    consent_sha256: str | None

    def to_json(self) -> Json:
        """As stored."""
        return {"label": self.label, "consent_sha256": self.consent_sha256}

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read from a manifest."""
        label = fields.text("label", longest=100)
        consent = fields.optional_text("consent_sha256", longest=64)
        if consent is not None:
            fields_of_hash = Fields({"consent_sha256": consent}, fields.what)
            fields_of_hash.text("consent_sha256", pattern="[0-9a-f]{64}")
        fields.finish()
        return cls(label=label, consent_sha256=consent)


@dataclass(frozen=True, kw_only=True)
class Licence:
    """The terms of a concept.

    Attributes:
        name: An SPDX-like name in lower case, `custom`, or `mixed` for a fused model.
        credit: Whom to name; one line a source.
        commercial_use: Whether pictures may be sold.
        derivatives: Whether the concept may be merged into a fused model.
        persons: Every person depicted.
    """

    name: str
    credit: tuple[str, ...] = ()
    commercial_use: bool
    derivatives: bool
    persons: tuple[Person, ...] = ()

    @classmethod
    def named(cls, name: str, *, credit: Sequence[str] = (), persons: Sequence[Person] = ()) -> Self:
        """One of the known licences.

        Raises:
            BadInputError: If the name is unknown; lists those that are known.
        """
        if name not in KNOWN:
            raise BadInputError(f"licence {name!r}: expected one of {', '.join(KNOWN)}")
        commercial_use, derivatives = KNOWN[name]
        return cls(
            name=name,
            credit=tuple(credit),
            commercial_use=commercial_use,
            derivatives=derivatives,
            persons=tuple(persons),
        )

    @property
    def lacks_consent(self) -> bool:
        """Whether a person is shown of whom no consent is recorded."""
        return any(person.consent_sha256 is None for person in self.persons)

    def to_json(self) -> Json:
        """As stored."""
        return {
            "name": self.name,
            "credit": list(self.credit),
            "commercial_use": self.commercial_use,
            "derivatives": self.derivatives,
            "persons": [person.to_json() for person in self.persons],
        }

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read from a manifest."""
        licence = cls(
            name=fields.text("name", longest=60, pattern="[a-z0-9][a-z0-9.-]*"),
            credit=fields.texts("credit", most=256, longest=200),
            commercial_use=fields.boolean("commercial_use"),
            derivatives=fields.boolean("derivatives"),
            persons=tuple(
                Person.read(Fields(item, f"{fields.what}, person")) for item in fields.items("persons", most=256)
            ),
        )
        fields.finish()
        return licence


KNOWN: Mapping[str, tuple[bool, bool]] = {
    "cc0-1.0": (True, True),
    "cc-by-4.0": (True, True),
    "cc-by-sa-4.0": (True, True),
    "cc-by-nc-4.0": (False, True),
    "cc-by-nc-sa-4.0": (False, True),
    "cc-by-nd-4.0": (True, False),
    "cc-by-nc-nd-4.0": (False, False),
    "all-rights-reserved": (False, False),
    "proprietary": (False, False),
}
"""Licence name -> (commercial use, derivatives); the terms are those of creativecommons.org/licenses."""


def check_fusable(licences: Mapping[ConceptRef, Licence]) -> None:
    """Refuse a fusion that one of its sources forbids.

    Raises:
        LicenceError: Names the first source that may not be merged or shows a person without consent.
    """
    for ref, licence in sorted(licences.items()):
        if not licence.derivatives:
            raise LicenceError(f"{ref}: its licence {licence.name} forbids merging; leave it out or ask {ref.owner}")
        if licence.lacks_consent:
            raise LicenceError(f"{ref}: shows a person without recorded consent; leave it out or ask {ref.owner}")


def combined(licences: Mapping[ConceptRef, Licence]) -> Licence:
    """The terms of a model fused from these sources: the most restrictive of each kind, every credit kept.

    Raises:
        LicenceError: If one of them forbids merging.
        BadInputError: If there are none.
    """
    if not licences:
        raise BadInputError("a fused model has at least one source")
    check_fusable(licences)
    names = {licence.name for licence in licences.values()}
    credit: dict[str, None] = {}
    persons: dict[Person, None] = {}
    for ref, licence in sorted(licences.items()):
        credit.update(dict.fromkeys(licence.credit or (f"{ref} by {ref.owner}",)))
        persons.update(dict.fromkeys(licence.persons))
    return Licence(
        name=names.pop() if len(names) == 1 else "mixed",
        credit=tuple(credit),
        commercial_use=all(licence.commercial_use for licence in licences.values()),
        derivatives=True,
        persons=tuple(persons),
    )
