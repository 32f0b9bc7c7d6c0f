"""The concepts that go into a fusion: in one order, under words that cannot collide, on one base."""

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mos.artifact import ArtifactCard, EDLoRA
from mos.base_model import BaseModel
from mos.concept import ConceptRef
from mos.edlora.adapter import ConceptWords
from mos.edlora.lora import LowRank
from mos.errors import BadInputError, ConflictError
from mos.facts import BaseFacts
from mos.fusion.config import FusionConfig
from mos.fusion.errors import BaseMismatchError, FusionError


@dataclass(frozen=True, kw_only=True, eq=False)
class FusionSource:
    """One concept to fuse.

    Attributes:
        ref: Its name in the registry, or the name it should have.
        edlora: Its weights; a part may be missing (no text-encoder updates, no embeddings, other ranks).
        scales: Factor by component ("text_encoder", "unet"); 1 where none is given.
        sha256: Of the file it came from; "" where there is none.
    """

    ref: ConceptRef
    edlora: EDLoRA
    scales: Mapping[str, float] = field(default_factory=dict)
    sha256: str = ""

    @property
    def name(self) -> str:
        """`owner/name@version`, for messages and records."""
        return str(self.ref)

    @property
    def prompt_word(self) -> str:
        """What stands for the concept in prompts: its word, or its class word if it brings no embeddings."""
        return self.ref.word if self.edlora.embeddings else self.edlora.card.class_word

    def update(self, component: str, linear: str) -> LowRank | None:
        """The concept's update of a layer with its scale absorbed, or None where it has none."""
        found = self.edlora.linears.get(component, {}).get(linear)
        factor = float(self.scales.get(component, 1.0))
        return found if found is None or factor == 1.0 else found.scaled(factor)

    def updates(self, component: str) -> dict[str, LowRank]:
        """All updates of a component, scales absorbed."""
        names = self.edlora.linears.get(component, {})
        return {name: update for name in names if (update := self.update(component, name)) is not None}

    def concept_words(self) -> ConceptWords | None:
        """The concept's words, renamed after its owner so that two owners' equal words stay apart."""
        if not self.edlora.embeddings:
            return None
        stem = self.ref.word[1:-1]
        count = len(self.edlora.card.words)
        endings = ("rand", "class") if count == 2 else tuple(str(index + 1) for index in range(count))
        return ConceptWords(
            ref=self.name,
            word=self.ref.word,
            words=tuple(f"<{stem}-{ending}>" for ending in endings),
            class_word=self.edlora.card.class_word,
            embeddings=self.edlora.embeddings,
        )

    def content_digest(self) -> str:
        """sha256 over scales, words, updates and embeddings, hex: what cached statistics depend on."""
        digest = hashlib.sha256(f"{self.name}|{sorted(self.scales.items())}|{self.prompt_word}".encode())
        for component, updates in sorted(self.edlora.linears.items()):
            for name, update in sorted(updates.items()):
                digest.update(f"{component}/{name}:{update.up.shape}{update.down.shape}".encode())
                digest.update(update.up.contiguous().numpy().data)
                digest.update(update.down.contiguous().numpy().data)
        for encoder, rows in sorted(self.edlora.embeddings.items()):
            digest.update(f"{encoder}:{rows.shape}".encode())
            digest.update(rows.detach().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """A concept whose updates of a component were scaled down: its norm before, and the factor."""

    concept: str
    component: str
    norm: float
    factor: float


def prepare_sources(
    base: BaseModel, sources: Sequence[FusionSource], config: FusionConfig
) -> tuple[list[FusionSource], list[Clipping]]:
    """Order and check the concepts of a fusion.

    Returns:
        The concepts by name (so that their order on the command line does not matter) and what was clipped.

    Raises:
        BadInputError: If there are none, a scale is for none of them, or a layer or embedding does not fit the base.
        ConflictError: If a concept is given twice, or two would be typed as one word.
        BaseMismatchError: If one was trained on another base and that is not allowed.
        FusionError: If a concept's weights are not finite or far too large; names concept and layer.
    """
    if not sources:
        raise BadInputError("no concepts to fuse; name at least one, such as alice/robot")
    ordered = sorted(sources, key=lambda source: source.name)
    _check_words(ordered)
    ordered = _scaled(ordered, config)
    for source in ordered:
        check_base(source.name, source.edlora.card, base.facts, config)
        _check_layers(source, base.facts)
    return _within_norms(ordered, base.facts, config)


def vocabulary_of(sources: Sequence[FusionSource]) -> tuple[ConceptWords, ...]:
    """The words of all concepts that bring embeddings, in the order of the concepts."""
    words = (source.concept_words() for source in sources)
    return tuple(concept for concept in words if concept is not None)


def _check_words(sources: Sequence[FusionSource]) -> None:
    owners: dict[str, str] = {}
    for source in sources:
        other = owners.setdefault(source.ref.word, source.name)
        if other != source.name:
            raise ConflictError(
                f"{other} and {source.name} would both be typed as {source.ref.word}; fuse one of them, or rename one"
            )
    if len({source.name for source in sources}) != len(sources):
        raise ConflictError(f"{', '.join(source.name for source in sources)}: a concept is named twice; name it once")


def check_base(name: str, card: ArtifactCard, facts: BaseFacts, config: FusionConfig) -> None:
    """Refuse a concept of another base, unless the config says to fuse it all the same.

    Raises:
        BaseMismatchError: Naming the concept and the components that differ.
    """
    differing = [
        part for part, digest in sorted(facts.fingerprint.items()) if card.base_fingerprint.get(part) != digest
    ]
    if differing and not config.allow_base_mismatch:
        raise BaseMismatchError(
            f"{name}: trained on {card.base_name}, whose {' and '.join(differing)} differ from those of "
            f"{facts.name}; use that base, or --allow-base-mismatch, which fuses updates of foreign weights"
        )


def _scaled(sources: Sequence[FusionSource], config: FusionConfig) -> list[FusionSource]:
    """The concepts with the scales of the config on top of their own.

    Raises:
        BadInputError: If one of them is for no concept here.
    """
    names = {f"{source.ref.owner}/{source.ref.name}": source for source in sources}
    unknown = sorted(set(config.scales) - set(names))
    if unknown:
        raise BadInputError(f"a scale for {', '.join(unknown)}: expected one of {', '.join(sorted(names))}")
    return [
        source
        if name not in config.scales
        else replace(
            source,
            scales={part: source.scales.get(part, 1.0) * config.scale(name, part) for part in source.edlora.linears},
        )
        for name, source in names.items()
    ]


def _check_layers(source: FusionSource, facts: BaseFacts) -> None:
    for component, updates in source.edlora.linears.items():
        shapes = facts.linear_shapes.get(component, {})
        for name, update in updates.items():
            if tuple(shapes.get(name, ())) != update.shape:
                raise BadInputError(
                    f"{source.name}: its update of {component} {name} is {list(update.shape)}, "
                    f"{facts.name} has {list(shapes.get(name, ())) or 'no such layer'}; it was made for another base"
                )
            if not (update.up.isfinite().all() and update.down.isfinite().all()):
                raise FusionError(
                    f"{source.name}: its update of {component} {name} is not finite; train and publish it again"
                )
    if source.edlora.embeddings:
        _check_embeddings(source, facts)


def _check_embeddings(source: FusionSource, facts: BaseFacts) -> None:
    for encoder in facts.encoders:
        rows = source.edlora.embeddings.get(encoder.name)
        expected = [len(source.edlora.card.words), facts.num_cross_attention_layers, encoder.hidden_dim]
        if rows is None or list(rows.shape) != expected:
            raise BadInputError(
                f"{source.name}: its embeddings for {encoder.name} are {'none' if rows is None else list(rows.shape)}, "
                f"{facts.name} needs {expected}; it was made for another base"
            )
        if not rows.isfinite().all():
            raise FusionError(f"{source.name}: its embeddings are not finite; train and publish it again")


def relative_norm(source: FusionSource, component: str, facts: BaseFacts) -> float:
    """Frobenius norm of a concept's updates of a component over that of the base layers they belong to."""
    updates = source.updates(component)
    squares = sum(update.norm() ** 2 for update in updates.values())
    base = sum(facts.linear_norms[component][name] ** 2 for name in updates)
    return float((squares / base) ** 0.5) if base > 0 else 0.0


def _within_norms(
    sources: list[FusionSource], facts: BaseFacts, config: FusionConfig
) -> tuple[list[FusionSource], list[Clipping]]:
    clippings: list[Clipping] = []
    for component in sorted({name for source in sources for name in source.edlora.linears}):
        norms = {source.name: relative_norm(source, component, facts) for source in sources}
        for source in sources:
            limit = _norm_limit(source.name, norms, config)
            if norms[source.name] <= limit:
                continue
            if config.clip_norm is None:
                raise FusionError(
                    f"{source.name}: its {component} updates are {norms[source.name]:.3g} times as large as the base's "
                    f"layers, at most {limit:.3g} is taken beside the other concepts; leave it out, or use --clip-norm"
                )
            factor = min(config.clip_norm, limit) / norms[source.name]
            clippings.append(Clipping(concept=source.name, component=component, norm=norms[source.name], factor=factor))
    return [_clipped(source, clippings) for source in sources], clippings


def _norm_limit(name: str, norms: Mapping[str, float], config: FusionConfig) -> float:
    others = [norm for other, norm in norms.items() if other != name and norm > 0]
    beside = config.outlier_limit * statistics.median(others) if others else float("inf")
    return min(config.norm_limit, beside)


def _clipped(source: FusionSource, clippings: Sequence[Clipping]) -> FusionSource:
    scales = dict(source.scales)
    for clipping in clippings:
        if clipping.concept == source.name:
            scales[clipping.component] = scales.get(clipping.component, 1.0) * clipping.factor
    return replace(source, scales=scales)
