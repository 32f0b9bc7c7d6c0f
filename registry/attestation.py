"""Evaluations a concept carries: recomputed by the registry's own evaluator, signed with the indexer's key.

An owner cannot claim one: only the key named in registry.json signs, and the signed document names the sha256
of the very weights that were drawn with. A document that does not verify is not shown.

Lies under `evaluations/concepts/<owner>/<name>/<version>/<sha256 of the document>.json`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from mos.concept import ConceptRef
from mos.errors import BadInputError, MosError
from registry.documents import Envelope, check_format, sha256_hex
from registry.errors import FormatError
from registry.keys import PublicKey, SigningKey
from registry.layout import check_sha256
from registry.objects.protocol import ObjectStore
from registry.writing import create_or_same

ATTESTATION_FORMAT = 1
ATTESTATION_TYPE = "application/vnd.mos.evaluation+json"
MAX_SHOWN = 64
"""Documents read of one version; an evaluator has no reason to write more."""

_METRIC = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean with its interval, from `count` pictures."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """What the evaluator found out about one version.

    Attributes:
        ref: With its version.
        weights_sha256: Of the weights that drew the pictures; must be the manifest's.
        evaluation: Digest of the evaluation, where every picture and row lies.
        suite: Name of its prompts.
        scores: Metric -> score of this version's pictures.
        changes: For a fused model: concept -> metric -> fused minus single, paired.
        created_at: RFC 3339.
    """

    ref: ConceptRef
    weights_sha256: str
    evaluation: str
    suite: str
    scores: Mapping[str, Score]
    changes: Mapping[str, Mapping[str, Score]]
    created_at: str

    def seal(self, key: SigningKey) -> bytes:
        """The signed envelope's bytes."""
        document = {
            "format": ATTESTATION_FORMAT,
            "ref": str(self.ref),
            "weights_sha256": check_sha256(self.weights_sha256),
            "evaluation": check_sha256(self.evaluation),
            "suite": self.suite,
            "scores": _as_json(self.scores),
            "changes": {concept: _as_json(scores) for concept, scores in self.changes.items()},
            "created_at": self.created_at,
        }
        return Envelope.seal(document, ATTESTATION_TYPE, key).to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes, evaluator: PublicKey, what: str) -> Self:
        """Read a document and check that the registry's evaluator signed it.

        Raises:
            FormatError: If it is malformed or of a newer format.
            SignatureError: If somebody else signed it or it was changed.
        """
        envelope = Envelope.from_bytes(data, ATTESTATION_TYPE, what)
        envelope.verify(evaluator, what)
        document = envelope.document(what)
        check_format(document, ATTESTATION_FORMAT, what)
        try:
            return cls(
                ref=ConceptRef.parse(document["ref"]),
                weights_sha256=check_sha256(document["weights_sha256"]),
                evaluation=check_sha256(document["evaluation"]),
                suite=str(document["suite"]),
                scores=_from_json(document["scores"]),
                changes={str(name): _from_json(scores) for name, scores in document["changes"].items()},
                created_at=str(document["created_at"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError, BadInputError) as error:
            raise FormatError(f"{what}: not an evaluation document ({error})") from error


def attestation_prefix(ref: ConceptRef) -> str:
    """Where the evaluations of one version lie."""
    if ref.version is None:
        raise BadInputError(f"{ref}: an evaluation belongs to one version; name it as {ref}@1")
    return f"evaluations/concepts/{ref.owner}/{ref.name}/{ref.version:06d}/"


def write_attestation(store: ObjectStore, attestation: Attestation, key: SigningKey) -> str:
    """Sign and store a document; the same one twice is one. Returns its key in the store."""
    data = attestation.seal(key)
    name = f"{attestation_prefix(attestation.ref)}{sha256_hex(data)}.json"
    create_or_same(store, name, data)
    return name


def read_attestations(
    store: ObjectStore, ref: ConceptRef, weights_sha256: str, evaluator: PublicKey
) -> tuple[list[Attestation], list[str]]:
    """The verified evaluations of a version, newest first, and one line for each document that is not believed."""
    found, refused = [], []
    for stored in list(store.list(attestation_prefix(ref)))[:MAX_SHOWN]:
        what = f"{store.url}/{stored.key}"
        try:
            item = Attestation.from_bytes(store.get(stored.key), evaluator, what)
        except MosError as error:
            refused.append(str(error))
            continue
        if item.ref != ref or item.weights_sha256 != weights_sha256:
            refused.append(
                f"{what}: is about {item.ref} with weights {item.weights_sha256[:12]}, not about this version"
            )
            continue
        found.append(item)
    return sorted(found, key=lambda item: item.created_at, reverse=True), refused


def _as_json(scores: Mapping[str, Score]) -> dict[str, Any]:
    for name in scores:
        if not _METRIC.fullmatch(name):
            raise BadInputError(f"metric {name!r}: expected lower-case letters, digits and '_'")
    return {
        name: {"mean": score.mean, "low": score.low, "high": score.high, "count": score.count}
        for name, score in scores.items()
    }


def _from_json(data: Mapping[str, Any]) -> dict[str, Score]:
    return {
        str(name): Score(
            mean=float(score["mean"]), low=float(score["low"]), high=float(score["high"]), count=int(score["count"])
        )
        for name, score in data.items()
    }
