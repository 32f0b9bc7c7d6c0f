"""One concept from several seeds: trained side by side in slots, and the one whose words fit best is kept.

Embedding learning is unstable from seed to seed, so a person asks for three and keeps one. A concept with
one seed goes through here as well: it is judged the same way, so that its owner hears when its words alone
do not carry the identity.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as to_bytes

from mos.artifact import EDLoRA
from mos.base_model import BaseModel
from mos.errors import BadInputError, ConflictError
from mos.training.config import TrainingConfig
from mos.training.data import ConceptData
from mos.training.judging import EmbeddingShare, embedding_share
from mos.training.loop import SlotSpec, StepReport, Trainer, TrainingError

MOST_SEEDS = 16

_METADATA = "mos.contest"


@dataclass(frozen=True, kw_only=True, eq=False)
class SeedResult:
    """One seed of several: its concept (None if its training failed) and what its words alone have learnt."""

    seed: int
    edlora: EDLoRA | None
    share: EmbeddingShare | None


@dataclass(kw_only=True, eq=False)
class _Entry:
    """A concept in the contest: its order, and the slot of every seed that has not failed."""

    spec: SlotSpec
    slots: dict[int, str] = field(default_factory=dict)


class ContestTrainer:
    """A :class:`Trainer` whose concepts may have several seeds, all in slots of one step.

    It is used like a trainer: a key stands for a concept, its report is the mean of its seeds. Seeds are
    ``config.seed`` and the next ones. The kept seed's file is the one that training it alone would give.

    Args:
        base: shared, frozen.
    """

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self._trainer = Trainer(base)
        self._entries: dict[str, _Entry] = {}

    @property
    def keys(self) -> tuple[str, ...]:
        """Concepts in training, in order of their arrival."""
        live = set(self._trainer.keys)
        return tuple(key for key, entry in self._entries.items() if live & set(entry.slots.values()))

    def admit(self, spec: SlotSpec, state: bytes | None = None, *, num_seeds: int = 1) -> str:
        """Let a concept join at the next step; see :meth:`Trainer.admit`.

        Raises:
            BadInputError: If ``num_seeds`` is not 1 to 16 or the state is not one of so many seeds.
            ConflictError: If the key is taken or the options do not fit those in training.
        """
        if not 1 <= num_seeds <= MOST_SEEDS:
            raise BadInputError(f"{num_seeds} seeds: expected 1 to {MOST_SEEDS}")
        if spec.key in self._entries:
            raise ConflictError(f"slot {spec.key}: already in this trainer")
        seeds = range(spec.config.seed, spec.config.seed + num_seeds)
        states = _unpacked(spec.key, state, seeds)
        entry = _Entry(spec=spec)
        try:
            for seed in states:
                slot = replace(
                    spec,
                    key=spec.key if num_seeds == 1 else f"{spec.key} seed {seed}",
                    config=spec.config.with_options(seed=seed),
                )
                entry.slots[seed] = self._trainer.admit(slot, states[seed])
        except Exception:
            for key in entry.slots.values():
                self._trainer.remove(key)
            raise
        self._entries[spec.key] = entry
        return spec.key

    def step(self) -> list[StepReport]:
        """Take one step of every seed of every concept; a concept fails when its last seed does."""
        reports = {report.key: report for report in self._trainer.step()}
        return [
            self._merged(entry, own)
            for entry in list(self._entries.values())
            if (own := {seed: reports[slot] for seed, slot in entry.slots.items() if slot in reports})
        ]

    def results(self, key: str) -> list[SeedResult]:
        """Judge a concept's seeds, finished or as they stand; best first. The concept leaves.

        The best is the one whose words alone fit the pictures best.

        Raises:
            ConflictError: If there is no such concept.
        """
        entry = self._entry(key)
        del self._entries[key]
        results = [self._judged(entry, seed) for seed in entry.slots]
        return sorted(results, key=lambda result: math.inf if result.share is None else result.share.embedding)

    def finish(self, key: str) -> EDLoRA:
        """Hand out a concept's best seed; the concept leaves.

        Raises:
            TrainingError: If every seed failed.
            ConflictError: If there is no such concept.
        """
        return best_of(key, self.results(key))

    def remove(self, key: str) -> None:
        """Let a concept go without a result; the others do not notice."""
        for slot in self._entry(key).slots.values():
            self._trainer.remove(slot)
        del self._entries[key]

    def snapshot(self, key: str) -> EDLoRA:
        """Return a concept's first seed as it stands now; it stays in training."""
        live = set(self._trainer.keys)
        return self._trainer.snapshot(next(slot for slot in self._entry(key).slots.values() if slot in live))

    def slot_state_bytes(self, key: str) -> bytes:
        """Return everything needed to go on elsewhere: of one seed the trainer's own bytes, else all of them."""
        slots = self._entry(key).slots
        if list(slots.values()) == [key]:
            return self._trainer.slot_state_bytes(key)
        states = {
            f"seed.{seed}": torch.frombuffer(bytearray(self._trainer.slot_state_bytes(slot)), dtype=torch.uint8)
            for seed, slot in slots.items()
        }
        return bytes(to_bytes(states, metadata={_METADATA: json.dumps(sorted(slots))}))

    def _entry(self, key: str) -> _Entry:
        if key not in self._entries:
            raise ConflictError(f"slot {key}: not in this trainer (in it: {', '.join(self._entries) or 'none'})")
        return self._entries[key]

    def _merged(self, entry: _Entry, reports: dict[int, StepReport]) -> StepReport:
        """One report of a concept's seeds; seeds that failed leave, the last one's failure is the concept's."""
        failed = [seed for seed, report in reports.items() if report.failure]
        kept = [report for seed, report in reports.items() if seed not in failed]
        if kept:
            for seed in failed:
                self._trainer.remove(entry.slots.pop(seed))
        told = kept or list(reports.values())
        losses = [report.loss for report in told if math.isfinite(report.loss)]
        return replace(
            told[0],
            key=entry.spec.key,
            loss=fmean(losses) if losses else math.nan,
            embedding_norm=fmean(report.embedding_norm for report in told),
            gradient_norm=fmean(report.gradient_norm for report in told),
            is_frozen=all(report.is_frozen for report in told),
        )

    def _judged(self, entry: _Entry, seed: int) -> SeedResult:
        try:
            edlora = self._trainer.finish(entry.slots[seed])
        except TrainingError:
            return SeedResult(seed=seed, edlora=None, share=None)
        return SeedResult(seed=seed, edlora=edlora, share=embedding_share(self.base, entry.spec.data, edlora))


def best_of(name: str, results: Sequence[SeedResult]) -> EDLoRA:
    """Return the first result's concept.

    Raises:
        TrainingError: If even the best of them failed.
    """
    best = results[0].edlora
    if best is None:
        raise TrainingError(f"{name}: none of {len(results)} seeds could be trained; lower the learning rates")
    return best


def verdict(results: Sequence[SeedResult]) -> dict[str, Any]:
    """What a report says of judged seeds: the kept one, its words' share, advice, and every seed's loss by words."""
    share = results[0].share
    return {
        "seed": results[0].seed,
        "seeds": {str(result.seed): result.share.embedding for result in results if result.share is not None},
        "words_share": 0.0 if share is None else share.share,
        "warning": "" if share is None else share.warning,
    }


def train_seeds(
    base: BaseModel,
    data: ConceptData,
    config: TrainingConfig,
    num_seeds: int,
    *,
    on_step: Callable[[StepReport], None] | None = None,
) -> list[SeedResult]:
    """Train a concept from several seeds in one step each; best first.

    Raises:
        BadInputError: If ``num_seeds`` is not 1 to 16.
        TrainingError: If every seed failed.
    """
    trainer = ContestTrainer(base)
    key = trainer.admit(SlotSpec(key=data.name, data=data, config=config), num_seeds=num_seeds)
    while key in trainer.keys:
        for report in trainer.step():
            if on_step is not None:
                on_step(report)
    results = trainer.results(key)
    best_of(data.name, results)
    return results


def _unpacked(key: str, state: bytes | None, seeds: Sequence[int]) -> dict[int, bytes | None]:
    """The state of every seed to go on with; without a state every seed starts."""
    if state is None or len(seeds) == 1:
        return dict.fromkeys(seeds, state)
    try:
        length = int.from_bytes(state[:8], "little")
        found = json.loads(json.loads(state[8 : 8 + length])["__metadata__"][_METADATA])
        tensors = load(state)
        states = {int(seed): tensors[f"seed.{seed}"].numpy().tobytes() for seed in found}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"slot {key}: the checkpoint is not one of {len(seeds)} seeds ({type(error).__name__}); start again"
        ) from error
    if not states or not set(states) <= set(seeds):
        raise BadInputError(f"slot {key}: the checkpoint is of seeds {found}, expected of {list(seeds)}; start again")
    return dict(states)
