"""How concepts are fused: solver, regularisation, what is recorded, what is refused."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, get_args

from mos.errors import BadInputError

SolverName = Literal["lbfgs", "lbfgs-preconditioned", "exact"]
StrategyName = Literal["gradient", "average", "sum", "svd-average", "ties", "dare"]
SOLVERS: tuple[str, ...] = get_args(SolverName)
STRATEGIES: tuple[str, ...] = get_args(StrategyName)

COMPONENTS = ("text_encoder", "text_encoder_2", "unet")
LARGEST_SCALE = 10.0

PAPER_STEPS = {"text-encoder": 500, "cross-attention": 500, "spatial": 50}
"""LBFGS steps of Mix-of-Show (arXiv:2305.18292, appendix)."""

PAPER_PROMPTS = ("photo of a {}", "{}")
"""What Mix-of-Show records of a concept."""

CONCEPT_PROMPTS = (
    "photo of a {}",
    "a {} on the beach",
    "a big {}",
    "{}",
    "a {} in the forest at the left",
    "a {} in the city",
    "a {} and a dog",
    "a picture of a {} in space",
    "a {} at night",
    "two people and a {}",
    "a {} in a room",
    "a small {} on the right",
    "a drawing of a {} by the sea",
    "a {} with a hat in the meadow",
)
"""The paper's two and twelve contexts: on them, the concept also keeps its words elsewhere (docs/fusion.md)."""

GENERIC_PROMPTS = (
    "",
    "a photo",
    "a cat and a dog in a garden",
    "a house by the sea",
    "a man and a woman in the street",
    "a car under a tree",
    "flowers in a mug on a table",
    "a painting of a mountain",
    "a robot in the city at night",
    "a fish in the water",
    "a bird in the snow",
    "the moon over a field",
    "a red car and a blue house",
    "a striped fish with a hat",
    "a small yellow flower in the desert",
    "a photo of a tree next to a house",
    "a person on the left and a car on the right",
    "a cup at the top and a dog at the bottom",
    "an image of the ground and the sky",
    "two cats and three robots on the beach",
    "a man running near the water on a sunny day",
    "a big green plant in space",
    "a clean toy with a star on the sand",
    "an animal sleeping under a tree in the forest",
    "a close up of a building",
    "a drawing of a vehicle beside the road",
    "a picture of a bow in a room",
    "snow over the mountains in the evening",
    "a black and white picture of an old street",
    "somebody reading a book by the window",
    "a bright colourful background",
    "a spotted object in the meadow",
    "a table with bread and fruit",
    "a statue in front of a castle",
    "an old bicycle against a wall",
    "a train on a bridge",
    "a horse and a sheep behind a fence",
    "a portrait of a woman with glasses",
    "blurry, dark, dirty",
    "bad quality, cropped, text",
)
"""Prompts without concepts, "" and two negative ones among them: the more, the less the update drifts elsewhere."""
DRIFT_PROMPTS = ("a child with a ball", "a boat on a lake", "a forest in autumn", "two people in a room")


class StageName(StrEnum):
    """The three stages of gradient fusion, in their order; each needs the fused result of those before it."""

    TEXT_ENCODER = "text-encoder"
    CROSS_ATTENTION = "cross-attention"
    SPATIAL = "spatial"


@dataclass(frozen=True, kw_only=True)
class StageRule:
    """How one stage is solved.

    Attributes:
        steps: LBFGS steps.
        generic_weight: Weight of the generic prompts relative to all concepts together; 0 records none.
        ridge: Pull toward the base weight, relative to the mean input energy.
    """

    steps: int
    generic_weight: float = 0.0
    ridge: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Options of one fusion; everything that changes its result besides base and concepts.

    Attributes:
        strategy: `gradient` is Mix-of-Show's; the others merge weights without looking at any input.
        solver: See `mos.fusion.solver.solve_sites`.
        text_encoder: Rule of the first stage.
        cross_attention: Rule of keys and values.
        spatial: Rule of all other U-Net layers.
        history: LBFGS history size.
        prompts: What is recorded of each concept; `{}` stands for its word. The last stage draws the first ones,
            another for each latent seed.
        held_out_prompts: What fit is checked on; never fitted.
        generic_prompts: Prompts without concepts on which the update should be zero; with "", the empty branch
            of guidance.
        drift_prompts: Prompts without concepts on which drift is measured; never fitted.
        latent_seeds: Seeds of the pictures drawn while recording the last stage, one picture each.
        held_out_seeds: Seeds of the pictures on which the last stage is checked.
        sampling_steps: Steps of each of those pictures.
        measure: Whether held-out error and drift are measured, which costs about one more recording.
        threads: CPU threads of recording and solving; bits depend on their number, so it is fixed.
        scales: Factor on a concept's updates, by `owner/name`: a number, or one by component ("text_encoder", "unet").
        norm_limit: Largest Frobenius norm of a concept's updates in a component, in norms of the base's layers.
        outlier_limit: Largest such norm in medians of the other concepts'.
        clip_norm: Scale concepts above either limit down to this part of the base's norm instead of refusing them.
        allow_base_mismatch: Fuse concepts trained on another base, whose updates then rest on foreign weights.
        merge_rank: Rank that `svd-average` keeps.
        density: Part of the entries that `ties` and `dare` keep.
        seed: Of `dare`'s choice.
    """

    strategy: StrategyName = "gradient"
    solver: SolverName = "lbfgs"
    text_encoder: StageRule = StageRule(steps=500, generic_weight=0.03, ridge=1e-3)
    cross_attention: StageRule = StageRule(steps=500, generic_weight=0.3, ridge=1e-2)
    spatial: StageRule = StageRule(steps=50, ridge=1e-2)
    history: int = 25
    prompts: tuple[str, ...] = CONCEPT_PROMPTS
    held_out_prompts: tuple[str, ...] = ("a {} in the snow", "a painting of a {} on a table")
    generic_prompts: tuple[str, ...] = GENERIC_PROMPTS
    drift_prompts: tuple[str, ...] = DRIFT_PROMPTS
    latent_seeds: tuple[int, ...] = (0, 1, 2)
    held_out_seeds: tuple[int, ...] = (1000,)
    sampling_steps: int = 20
    measure: bool = True
    threads: int = 1
    scales: Mapping[str, float | Mapping[str, float]] = field(default_factory=dict)
    norm_limit: float = 4.0
    outlier_limit: float = 20.0
    clip_norm: float | None = None
    allow_base_mismatch: bool = False
    merge_rank: int = 4
    density: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [text for holds, text in self._checks() if not holds]
        if problems:
            raise BadInputError("fusion options: " + "; ".join(problems))

    def scale(self, concept: str, component: str) -> float:
        """The factor on the updates of a concept, `owner/name`, in a component; 1 where none was asked for."""
        wanted = self.scales.get(concept, 1.0)
        return float(wanted.get(component, 1.0) if isinstance(wanted, Mapping) else wanted)

    def rule(self, stage: StageName) -> StageRule:
        """The rule of a stage."""
        rules = {
            StageName.TEXT_ENCODER: self.text_encoder,
            StageName.CROSS_ATTENTION: self.cross_attention,
            StageName.SPATIAL: self.spatial,
        }
        return rules[stage]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` reads it back."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "FusionConfig":
        """Rebuild options from `to_json`.

        Raises:
            BadInputError: If a field is unknown or out of range.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise BadInputError(f"fusion options: unknown {', '.join(unknown)}; pip install --upgrade mos")
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        for name in ("text_encoder", "cross_attention", "spatial"):
            if name in fields:
                fields[name] = StageRule(**fields[name])
        return cls(**fields)

    def _checks(self) -> tuple[tuple[bool, str], ...]:
        rules = (self.text_encoder, self.cross_attention, self.spatial)
        return (
            (self.strategy in STRATEGIES, f"strategy {self.strategy!r}, expected one of {', '.join(STRATEGIES)}"),
            (self.solver in SOLVERS, f"solver {self.solver!r}, expected one of {', '.join(SOLVERS)}"),
            (all(1 <= rule.steps <= 10_000 for rule in rules), "steps of a stage: expected 1 to 10000"),
            (all(rule.generic_weight >= 0 and rule.ridge >= 0 for rule in rules), "weights and ridges: expected >= 0"),
            (1 <= self.history <= 100, f"history {self.history}, expected 1 to 100"),
            (
                bool(self.prompts) and all("{}" in text for text in (*self.prompts, *self.held_out_prompts)),
                "every prompt of a concept must contain {}, which stands for its word",
            ),
            (bool(self.generic_prompts) and bool(self.drift_prompts), "generic and drift prompts: expected some"),
            (bool(self.latent_seeds) and bool(self.held_out_seeds), "latent seeds: expected at least one"),
            (1 <= self.sampling_steps <= 1000, f"sampling_steps {self.sampling_steps}, expected 1 to 1000"),
            (1 <= self.threads <= 256, f"threads {self.threads}, expected 1 to 256"),
            (
                all(_is_scale(wanted) for wanted in self.scales.values()),
                f"scales {dict(self.scales)}: expected numbers from 0 to {LARGEST_SCALE:g}, or such by "
                f"{', '.join(COMPONENTS)}",
            ),
            (self.norm_limit > 0 and self.outlier_limit > 1, "norm limits: expected above 0 and above 1"),
            (self.clip_norm is None or self.clip_norm > 0, f"clip_norm {self.clip_norm}, expected above 0"),
            (self.merge_rank >= 1, f"merge_rank {self.merge_rank}, expected at least 1"),
            (0 < self.density <= 1, f"density {self.density}, expected above 0 and at most 1"),
        )


def _is_scale(wanted: object) -> bool:
    if isinstance(wanted, Mapping):
        return set(wanted) <= set(COMPONENTS) and not any(
            isinstance(value, Mapping) or not _is_scale(value) for value in wanted.values()
        )
    return isinstance(wanted, int | float) and math.isfinite(wanted) and 0 <= wanted <= LARGEST_SCALE


def paper_config(**changes: Any) -> FusionConfig:
    """Mix-of-Show as published: two prompts, no regularisation, one latent seed, early stopping alone."""
    options: dict[str, Any] = {
        "text_encoder": StageRule(steps=PAPER_STEPS[StageName.TEXT_ENCODER]),
        "cross_attention": StageRule(steps=PAPER_STEPS[StageName.CROSS_ATTENTION]),
        "spatial": StageRule(steps=PAPER_STEPS[StageName.SPATIAL]),
        "prompts": PAPER_PROMPTS,
        "latent_seeds": (0,),
    }
    return FusionConfig(**(options | changes))
