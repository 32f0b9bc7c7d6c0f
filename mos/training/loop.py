"""Training on one frozen base: K concepts in slots, one step for all of them, each as if it were alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from mos.artifact import ArtifactCard, EDLoRA
from mos.base_model import BaseModel
from mos.edlora.lora import LowRank
from mos.errors import ConflictError, JobFailedError, MosError
from mos.facts import tuned_linears
from mos.training import checkpoint
from mos.training.batches import Feed
from mos.training.config import SD1_MEAN_EMBEDDING_NORM, TrainingConfig
from mos.training.data import ConceptData
from mos.training.parameters import GROUPS, ConceptParameters
from mos.training.slots import RowSettings
from mos.training.slotted import to_low_rank
from mos.training.step import slot_losses

MAX_BAD_STEPS = 10
"""So many steps in a row without a finite gradient end a concept's training."""


class TrainingError(JobFailedError):
    """Raised when a concept's training cannot go on."""


class TrainingStoppedError(MosError):
    """Raised when the caller asked training to stop before its last step."""

    exit_code = 130


@dataclass(frozen=True, kw_only=True, eq=False)
class SlotSpec:
    """One owner's order: a key to tell slots apart, the pictures, the options."""

    key: str
    data: ConceptData
    config: TrainingConfig


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step did to one concept.

    Args:
        key: of the slot.
        step: steps taken so far.
        steps: steps in all.
        loss: of this step, per picture, regulariser included; not finite if the step was skipped.
        embedding_norm: mean norm of the concept's rows, in units of Stable Diffusion 1.x.
        gradient_norm: over all its parameters, before clipping.
        is_frozen: whether the embeddings have reached the norm stop.
        is_done: whether the slot has left; fetch the result with ``finish``.
        failure: why the slot failed, else empty.
    """

    key: str
    step: int
    steps: int
    loss: float
    embedding_norm: float
    gradient_norm: float
    is_frozen: bool
    is_done: bool
    failure: str = ""


@dataclass(kw_only=True, eq=False)
class Slot:
    """A concept in training: its order, its feed and its counters (mutable, owned by the trainer)."""

    spec: SlotSpec
    feed: Feed
    step: int = 0
    updates: int = 0
    is_frozen: bool = False
    bad_steps: int = 0
    loss_scale: float = 1.0
    good_steps: int = 0


class Trainer:
    """Trains several concepts on one base; owners join and leave between steps.

    The base's weights never change: LoRA acts through hooks inside :meth:`step` only.

    Args:
        base: shared, frozen.
    """

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self._slots: list[Slot] = []
        self._parameters: ConceptParameters | None = None
        self._results: dict[str, EDLoRA | TrainingError] = {}

    @property
    def keys(self) -> tuple[str, ...]:
        """Slots in training, in the order of their rows."""
        return tuple(slot.spec.key for slot in self._slots)

    def admit(self, spec: SlotSpec, state: bytes | None = None) -> str:
        """Let a concept join at the next step.

        Args:
            spec: the order.
            state: of :meth:`slot_state_bytes`, to go on where it stopped.

        Returns:
            The slot's key.

        Raises:
            ConflictError: If the key is taken, or the options that shape the parameters differ from those
                of the slots in training.
            BadInputError: If the class word is not one known token or the state belongs to another order.
        """
        if spec.key in self.keys or spec.key in self._results:
            raise ConflictError(f"slot {spec.key}: already in this trainer")
        if self._parameters is not None and self._slots and not self._parameters.fits(spec.config):
            raise ConflictError(
                f"slot {spec.key}: rank, tuned layers, words, batch size, accumulation, precision or regulariser "
                "differ from the slots in training; use another trainer"
            )
        if self._parameters is None or not self._slots:
            self._parameters = ConceptParameters(self.base, spec.config)
        slot = Slot(spec=spec, feed=Feed(self.base, spec.data, spec.config))
        slot.loss_scale = 2.0**12 if spec.config.precision == "fp16" else 1.0
        if state is None:
            self._parameters.start(spec.data.class_word, spec.config.initializer_sigma, spec.config.seed)
        else:
            checkpoint.restore(slot, self._parameters, state)
        self._slots.append(slot)
        return spec.key

    def step(self) -> list[StepReport]:
        """Take one step for every slot and say what it did to each; finished slots leave.

        Raises:
            ConflictError: If there is no slot.
        """
        if not self._slots or self._parameters is None:
            raise ConflictError("trainer: no slot to train; admit one first")
        losses = self.gradients()
        rows, reports = self._guard(losses)
        for group in GROUPS:
            self._parameters.banks[group].update(
                {index: self._row(slot, group) for index, slot in enumerate(self._slots) if index in rows}
            )
        for slot in [slot for index, slot in enumerate(self._slots) if index in rows]:
            slot.updates += 1
        for slot in self._slots:
            slot.step += 1
        self._stop_embeddings()
        return self._leave(reports)

    def gradients(self) -> list[float]:
        """Compute every slot's loss and leave its gradient in the parameters; draws one batch a slot."""
        parameters = self._parameters
        assert parameters is not None
        parameters.zero_grad()
        config = self._slots[0].spec.config
        totals = [0.0] * len(self._slots)
        for _ in range(config.accumulation):
            batches = [slot.feed.draw() for slot in self._slots]
            configs = [slot.spec.config for slot in self._slots]
            with slot_losses(self.base, parameters, batches, configs) as losses:
                scales = losses.new_tensor([slot.loss_scale / config.accumulation for slot in self._slots])
                parameters.backward((losses * scales).sum())
            for index, loss in enumerate(losses.detach().tolist()):
                totals[index] += loss / config.accumulation
        return totals

    def finish(self, key: str) -> EDLoRA:
        """Hand out a finished concept, or an unfinished one as it stands, which then leaves.

        Raises:
            TrainingError: If its training failed.
            ConflictError: If there is no such slot.
        """
        if key in self._results:
            result = self._results.pop(key)
            if isinstance(result, TrainingError):
                raise result
            return result
        index = self._index(key)
        edlora = self.snapshot(key)
        self._drop(index)
        return edlora

    def remove(self, key: str) -> None:
        """Let a slot go without a result; the others do not notice.

        Raises:
            ConflictError: If there is no such slot.
        """
        if self._results.pop(key, None) is None:
            self._drop(self._index(key))

    def snapshot(self, key: str) -> EDLoRA:
        """Return a concept as it stands now; it stays in training.

        Raises:
            ConflictError: If there is no such slot.
        """
        index = self._index(key)
        return self._edlora(index)

    def slot_state_bytes(self, key: str) -> bytes:
        """Return everything needed to go on with a slot elsewhere, bit-equal: safetensors with JSON metadata.

        Raises:
            ConflictError: If there is no such slot.
        """
        index = self._index(key)
        assert self._parameters is not None
        return checkpoint.save(self._slots[index], self._parameters, index)

    def _index(self, key: str) -> int:
        if key not in self.keys:
            raise ConflictError(f"slot {key}: not in this trainer (in it: {', '.join(self.keys) or 'none'})")
        return self.keys.index(key)

    def _drop(self, index: int) -> None:
        assert self._parameters is not None
        self._parameters.remove(index)
        del self._slots[index]

    def _guard(self, losses: list[float]) -> tuple[set[int], list[StepReport]]:
        """Decide for every slot by itself whether its gradient can be used; unscale and clip it."""
        assert self._parameters is not None
        norms = self._parameters.unscale([slot.loss_scale for slot in self._slots])
        usable: set[int] = set()
        reports: list[StepReport] = []
        embedding_norms = self._embedding_norms()
        for index, slot in enumerate(self._slots):
            is_finite = math.isfinite(losses[index]) and math.isfinite(norms[index])
            _count(slot, is_finite)
            if is_finite:
                usable.add(index)
                limit = slot.spec.config.max_grad_norm
                if limit is not None and norms[index] > limit:
                    self._parameters.scale_gradient(index, limit / norms[index])
            reports.append(
                StepReport(
                    key=slot.spec.key,
                    step=slot.step + 1,
                    steps=slot.spec.config.steps,
                    loss=losses[index] if is_finite else math.nan,
                    embedding_norm=embedding_norms[index],
                    gradient_norm=norms[index],
                    is_frozen=slot.is_frozen,
                    is_done=False,
                )
            )
        return usable, reports

    def _row(self, slot: Slot, group: str) -> RowSettings:
        config = slot.spec.config
        return RowSettings(
            lr=0.0 if group == "embedding" and slot.is_frozen else learning_rate(config, group, slot.step),
            step=slot.updates + 1,
            betas=config.betas,
            epsilon=config.epsilon,
            weight_decay=config.weight_decay,
        )

    def _stop_embeddings(self) -> None:
        for slot, norm in zip(self._slots, self._embedding_norms(), strict=True):
            slot.is_frozen = slot.is_frozen or norm >= slot.spec.config.embedding_norm_stop

    def _embedding_norms(self) -> list[float]:
        """Mean norm of every slot's rows, in units of Stable Diffusion 1.x."""
        assert self._parameters is not None
        unit = self.base.facts.encoders[0].mean_embedding_norm / SD1_MEAN_EMBEDDING_NORM
        return [norm / unit for norm in self._parameters.embedding_norms()]

    def _leave(self, reports: list[StepReport]) -> list[StepReport]:
        """Take finished and failed slots out; their results wait for ``finish``."""
        final: list[StepReport] = []
        leaving: list[int] = []
        for index, (slot, report) in enumerate(zip(self._slots, reports, strict=True)):
            failure = ""
            if slot.bad_steps >= MAX_BAD_STEPS:
                failure = (
                    f"{slot.spec.key}: {slot.bad_steps} steps in a row without a finite gradient at step {slot.step}; "
                    "lower the learning rates or check the pictures (mos data check)"
                )
            is_done = bool(failure) or slot.step >= slot.spec.config.steps
            if is_done:
                self._results[slot.spec.key] = TrainingError(failure) if failure else self._edlora(index)
                leaving.append(index)
            final.append(replace(report, is_frozen=slot.is_frozen, is_done=is_done, failure=failure))
        for index in reversed(leaving):
            self._drop(index)
        return final

    def _edlora(self, index: int) -> EDLoRA:
        assert self._parameters is not None
        spec, facts = self._slots[index].spec, self.base.facts
        config, tensors = spec.config, self._parameters.tensors(index)
        linears: dict[str, dict[str, LowRank]] = {
            component: to_low_rank(self.base, component, names, config.rank, tensors)
            for component, names in tuned_linears(facts, config.tuned).items()
        }
        words = spec.data.words if config.num_words == 2 else (f"<{spec.data.name}>",)
        card = ArtifactCard(
            words=words,
            class_word=spec.data.class_word,
            kind=spec.data.kind,
            base_name=facts.name,
            family=facts.family,
            base_fingerprint=facts.fingerprint,
            rank=config.rank,
            tuned=config.tuned,
            seed=config.seed,
            recipe=config.recipe(),
            title=spec.data.title,
        )
        return EDLoRA(card=card, linears=linears, embeddings=self._layer_rows(tensors))

    def _layer_rows(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        layers = self.base.facts.num_cross_attention_layers
        return {
            encoder.name: tensors[f"embedding:{encoder.name}"].expand(-1, layers, -1).float().cpu().contiguous()
            for encoder in self.base.facts.encoders
        }


def train_concept(
    base: BaseModel,
    data: ConceptData,
    config: TrainingConfig,
    *,
    on_step: Callable[[StepReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> EDLoRA:
    """Train one concept from start to end.

    Raises:
        TrainingError: If no finite gradient is left.
        TrainingStoppedError: If ``should_stop`` said so.
        BadInputError: If the class word is not one token the base knows.
    """
    trainer = Trainer(base)
    key = trainer.admit(SlotSpec(key=data.name, data=data, config=config))
    while key in trainer.keys:
        if should_stop is not None and should_stop():
            raise TrainingStoppedError(f"{data.name}: training was stopped before its last step")
        (report,) = trainer.step()
        if on_step is not None:
            on_step(report)
    return trainer.finish(key)


def learning_rate(config: TrainingConfig, group: str, step: int) -> float:
    """Return a group's rate at a step (from 0): linear warm-up, then linear decay to 0 after the last step."""
    peak = {
        "embedding": config.lr_embedding,
        "text_encoder": config.lr_text_encoder,
        "unet": config.lr_unet,
    }[group]
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    return peak * (config.steps - step) / (config.steps - config.warmup_steps)


def _count(slot: Slot, is_finite: bool) -> None:
    """Keep the slot's guard counters; in fp16 its loss scale falls on overflow and rises again slowly."""
    is_fp16 = slot.spec.config.precision == "fp16"
    if is_finite:
        slot.bad_steps, slot.good_steps = 0, slot.good_steps + 1
        if is_fp16 and slot.good_steps % 200 == 0:
            slot.loss_scale *= 2
        return
    slot.good_steps = 0
    if is_fp16 and slot.loss_scale > 1:
        slot.loss_scale /= 2
    else:
        slot.bad_steps += 1
