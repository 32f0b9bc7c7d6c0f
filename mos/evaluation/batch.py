"""A batch evaluation as blocks: what is drawn and scored together, named by everything its scores depend on.

A block is one model, one concept (or the generic prompts) and a few whole prompts with all their seeds. Its
name is a digest, so that a rerun knows what is already there, and a block that two workers make is one block.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mos.base_model import BaseModel
from mos.edlora.adapter import Adapter
from mos.errors import BadInputError, NotFoundError
from mos.evaluation.drawing import FLOOR_BASE, MARKS, SampledConfig, rendered, sampled
from mos.evaluation.prompts import STANDING_SEEDS, PromptSuite, Shot
from mos.evaluation.results import PictureScore
from mos.evaluation.scoring import ConceptTruth, PictureScorer, diversity_by_prompt, drift_rows

if TYPE_CHECKING:
    from PIL import Image


FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class BatchConfig(SampledConfig):
    """What all pictures of one evaluation share; evaluations of one digest may be compared.

    Attributes:
        suite: The prompts.
        num_seeds: Seeds a prompt.
        num_inference_steps: Denoising steps.
        guidance_scale: Classifier-free guidance.
        batch_size: Pictures denoised together; not part of the digest.
        prompts_per_block: Whole prompts in a block.
        bfloat16: Draw under autocast to bfloat16.
        base_digest: Fingerprint of the base.
        scorer_digest: Digest of the scorer's weights.
    """

    suite: PromptSuite
    num_seeds: int = STANDING_SEEDS
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    batch_size: int = 8
    prompts_per_block: int = 5
    bfloat16: bool = False
    base_digest: str = ""
    scorer_digest: str = ""

    def __post_init__(self) -> None:
        if min(self.num_seeds, self.num_inference_steps, self.batch_size, self.prompts_per_block) < 1:
            raise BadInputError("evaluation: seeds, steps, batch and block sizes must be at least 1")

    @property
    def digest(self) -> str:
        """sha256 of everything but the batch size, which changes no picture beyond rounding."""
        return _digest({"format": FORMAT_VERSION, **self.to_json()})

    def to_json(self) -> dict[str, Any]:
        """The settings as data, for the record beside the scores."""
        values = asdict(self)
        del values["batch_size"]
        return values


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """One column of the table: what draws.

    Attributes:
        name: As shown, such as "alice/robot@1" or "fused-gradient".
        method: Cell its rows belong to; models of one method are summarised together. A ceiling or floor of
            `mos.evaluation.drawing` needs no source.
        digest: sha256 of its files; of nothing for marks and the base.
        concepts: References of the concepts it draws.
        source: Name of its weights among the adapters; empty for the base and marks.
        scale: Factor on its low-rank updates (0 shows what the words alone carry).
    """

    name: str
    method: str
    concepts: tuple[str, ...]
    digest: str = ""
    source: str = ""
    scale: float = 1.0

    @property
    def is_mark(self) -> bool:
        """Whether the small world draws it instead of a model."""
        return self.method in MARKS


@dataclass(frozen=True, kw_only=True)
class Block:
    """A few prompts of one model and concept; `concept` is empty for generic prompts.

    Attributes:
        name: Digest of all its scores depend on.
        model: Name of the model.
        concept: Reference of the concept, or empty.
        shots: Whole prompts with all their seeds.
    """

    name: str
    model: str
    concept: str
    shots: tuple[Shot, ...]


def plan_blocks(
    config: BatchConfig, models: Sequence[EvaluatedModel], truths: Mapping[str, ConceptTruth]
) -> tuple[Block, ...]:
    """Cut an evaluation into blocks, in the order of models, concepts and prompts.

    Raises:
        BadInputError: If two models share a name, or a model draws a concept whose truth is not given.
    """
    names = [model.name for model in models]
    if len(set(names)) != len(names):
        raise BadInputError(f"evaluation: two models share a name among {', '.join(names)}; give them names apart")
    blocks = []
    for model in models:
        for concept in model.concepts:
            if concept not in truths:
                raise BadInputError(f"{model.name}: nothing is known of {concept}, which it draws")
            shots = config.suite.shots(config.num_seeds)
            if model.is_mark:
                shots = tuple(shot for shot in shots if shot.prompt.alone and shot.prompt.backdrop)
            blocks += _cut(config, model, concept, shots, truth_digest(truths[concept]))
        if model.source and model.scale:  # without updates, and without words to bind, it is the base
            blocks += _cut(config, model, "", config.suite.generic_shots(config.num_seeds), "")
    return tuple(blocks)


def truth_digest(truth: ConceptTruth) -> str:
    """Digest of what a concept's scores are measured against: class word, references, identity, distractors."""
    pictures = [*truth.references, *(picture for others in truth.distractors for picture in others)]
    content = [hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest() for picture in pictures]
    return _digest([truth.word, truth.class_word, repr(truth.identity), content])


@dataclass
class BlockDrawer:
    """Draws blocks on one base.

    Attributes:
        base: The base model.
        config: What all pictures share.
        models: By name.
        truths: By concept reference.
        adapters: Source of a model -> what it applies to the base.
    """

    base: BaseModel
    config: BatchConfig
    models: Mapping[str, EvaluatedModel]
    truths: Mapping[str, ConceptTruth]
    adapters: Mapping[str, Adapter]
    _plain: dict[tuple[Shot, ...], list["Image.Image"]] = field(default_factory=dict, init=False, repr=False)
    """The bare base's pictures of generic prompts, which are the same beside every model."""

    def draw(self, block: Block) -> list["Image.Image"]:
        """One picture a shot; for generic prompts the base's pictures follow the model's.

        Raises:
            NotFoundError: If the block is of a model that is not among these.
        """
        if block.model not in self.models:
            raise NotFoundError(f"block {block.name}: no model named {block.model}")
        model = self.models[block.model]
        if not block.concept:
            return self._generic(model, block.shots)
        truth = self.truths[block.concept]
        if model.is_mark:
            if truth.identity is None:
                raise BadInputError(f"{block.concept}: {model.method} needs an identity of the small world")
            return rendered(self.base, model.method, truth.identity, block.shots)
        return self._sampled(model, truth, block.shots)

    def _generic(self, model: EvaluatedModel, shots: Sequence[Shot]) -> list["Image.Image"]:
        nobody = ConceptTruth(ref="", word="", class_word="", references=())
        key = tuple(shots)
        if key not in self._plain:
            self._plain[key] = self._draw(None, nobody, shots)
        return self._sampled(model, nobody, shots) + self._plain[key]

    def _sampled(self, model: EvaluatedModel, truth: ConceptTruth, shots: Sequence[Shot]) -> list["Image.Image"]:
        adapter = self.adapters[model.source] if model.source else None
        if adapter is not None and model.scale != 1.0:
            adapter = _scaled(adapter, model.scale)
        return self._draw(adapter, truth, shots)

    def _draw(self, adapter: Adapter | None, truth: ConceptTruth, shots: Sequence[Shot]) -> list["Image.Image"]:
        return sampled(self.base, adapter, truth, shots, self.config.sampling, bfloat16=self.config.bfloat16)


@dataclass
class BlockScorer:
    """Scores drawn blocks."""

    pictures: PictureScorer
    config: BatchConfig
    models: Mapping[str, EvaluatedModel]
    truths: Mapping[str, ConceptTruth]

    def score(self, block: Block, images: Sequence["Image.Image"]) -> list[PictureScore]:
        """One row a shot; the first row of each prompt carries its diversity over seeds."""
        model = self.models[block.model]
        if not block.concept:
            half = len(block.shots)
            return drift_rows(
                self.pictures.clip, block.shots, images[half:], images[:half],
                method=model.method, suite=self.config.suite.name, model=model.name, model_digest=model.digest,
            )  # fmt: skip
        rows = self.pictures.rows(
            self.truths[block.concept], block.shots, images,
            method=model.method, suite=self.config.suite.name, model=model.name, model_digest=model.digest,
        )  # fmt: skip
        return self._with_diversity(block, images, rows)

    def _with_diversity(
        self, block: Block, images: Sequence["Image.Image"], rows: list[PictureScore]
    ) -> list[PictureScore]:
        features = self.pictures.clip.image_features(images)
        keyed = {(shot.prompt.text, shot.seed): row for shot, row in zip(block.shots, features, strict=True)}
        spread = diversity_by_prompt(keyed)
        result = []
        for row in rows:
            value = spread.pop(row.prompt, None)
            scores = row.scores if value is None else {**row.scores, "diversity": value}
            result.append(replace(row, scores=scores))
        return result


def _cut(config: BatchConfig, model: EvaluatedModel, concept: str, shots: Sequence[Shot], truth: str) -> list[Block]:
    size = config.prompts_per_block * config.num_seeds
    blocks = []
    for start in range(0, len(shots), size):
        part = tuple(shots[start : start + size])
        identity = [config.digest, model.method, model.digest, model.scale, concept, truth, [asdict(s) for s in part]]
        blocks.append(Block(name=_digest(identity)[:40], model=model.name, concept=concept, shots=part))
    return blocks


def _scaled(adapter: Adapter, factor: float) -> Adapter:
    linears = {
        component: {name: low_rank.scaled(factor) for name, low_rank in entries.items()}
        for component, entries in adapter.linears.items()
    }
    return replace(adapter, linears=linears)


def _digest(value: object) -> str:
    """sha256 of the canonical JSON of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def untrained_base(concepts: Sequence[str]) -> EvaluatedModel:
    """The floor beside every figure: the base alone, asked for each concept's class."""
    return EvaluatedModel(name=FLOOR_BASE, method=FLOOR_BASE, concepts=tuple(concepts))


def marks(concepts: Sequence[str]) -> list[EvaluatedModel]:
    """Ceilings and the other floor, for concepts of the small world."""
    return [EvaluatedModel(name=method, method=method, concepts=tuple(concepts)) for method in MARKS]


def adapter_digest(adapter: Adapter) -> str:
    """Digest of a model's tensors and words, whatever file they came from."""
    total = hashlib.sha256()
    for component, entries in sorted(adapter.linears.items()):
        for name, low_rank in sorted(entries.items()):
            _add_tensors(total, f"{component}.{name}", low_rank.up, low_rank.down)
    for words in adapter.vocabulary:
        for encoder, rows in sorted(words.embeddings.items()):
            _add_tensors(total, f"{words.word} {words.class_word} {encoder}", rows)
    return total.hexdigest()


def scorer_digest(pictures: PictureScorer) -> str:
    """Digest of the weights that score, so that rows of different scorers never mix."""
    total = hashlib.sha256()
    for name, tensor in sorted(pictures.clip.model.state_dict().items()):
        _add_tensors(total, name, tensor)
    return total.hexdigest()


def _add_tensors(total: Any, name: str, *tensors: Any) -> None:
    total.update(f"{name}\n".encode())
    for tensor in tensors:
        values = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
        total.update(str(values.shape).encode() + values.tobytes())
