"""The paper's table: its rows, its size, and where the work of one table lies."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mos.concept import ConceptRef
from mos.errors import BadInputError, ConflictError

if TYPE_CHECKING:
    from mos.base_model import BaseModel
    from mos.evaluation.claim import ClaimSubject
    from mos.fusion.config import FusionConfig
    from mos.smallworld.world import Identity
    from mos.training import TrainingConfig

SINGLES: Mapping[str, str] = {
    "textual inversion": "small-world-textual-inversion",
    "P+": "small-world-p-plus",
    "LoRA": "small-world-lora",
    "ED-LoRA": "small-world",
}
"""Row of the table -> training preset."""

FUSIONS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "LoRA + average": ("LoRA", {"strategy": "average"}),
    "ED-LoRA + average": ("ED-LoRA", {"strategy": "average"}),
    "ED-LoRA + sum": ("ED-LoRA", {"strategy": "sum"}),
    "ED-LoRA + gradient (lbfgs)": ("ED-LoRA", {"strategy": "gradient", "solver": "lbfgs"}),
    "ED-LoRA + gradient (preconditioned)": ("ED-LoRA", {"strategy": "gradient", "solver": "lbfgs-preconditioned"}),
    "ED-LoRA + gradient (exact)": ("ED-LoRA", {"strategy": "gradient", "solver": "exact"}),
}
"""Row of the table -> the single concepts it fuses, and how."""

SCALE_ZERO = "ED-LoRA, scale 0"


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Size and settings of the table.

    Attributes:
        num_concepts: Concepts, the world's classes in turn.
        num_seeds: Trainings of each concept.
        sizes: How many concepts are fused.
        suite: Prompts: a suite's name or a TOML file.
        prompt_seeds: Pictures of each of the suite's prompts.
        num_inference_steps: Denoising steps.
        guidance_scale: Guidance.
        training_steps: Steps of every training; None is the presets' own.
        singles: Rows of `SINGLES` that are trained.
        fusions: Rows of `FUSIONS` that are made.
    """

    num_concepts: int = 14
    num_seeds: int = 3
    sizes: tuple[int, ...] = (3, 5, 10, 14)
    suite: str = "small-world"
    prompt_seeds: int = 2
    num_inference_steps: int = 12
    guidance_scale: float = 3.0
    training_steps: int | None = None
    singles: tuple[str, ...] = field(default_factory=lambda: tuple(SINGLES))
    fusions: tuple[str, ...] = field(default_factory=lambda: tuple(FUSIONS))

    def __post_init__(self) -> None:
        unknown = sorted({*self.singles} - {*SINGLES} | {*self.fusions} - {*FUSIONS})
        if unknown:
            raise BadInputError(f"table: no row {', '.join(unknown)}; there are {', '.join([*SINGLES, *FUSIONS])}")
        lacking = sorted({FUSIONS[row][0] for row in self.fusions} - {*self.singles})
        if lacking:
            raise BadInputError(f"table: a fusion needs the single concepts of {', '.join(lacking)}")
        if not 1 <= self.num_concepts <= 99 or self.num_seeds < 1:
            raise BadInputError("table: expected 1 to 99 concepts and at least one training seed")
        if any(not 2 <= size <= self.num_concepts for size in self.sizes):
            raise BadInputError(f"table: sizes {self.sizes}: expected 2 to {self.num_concepts} concepts")

    def ref(self, index: int, seed: int) -> ConceptRef:
        """Concept `index` (from 0) of training seed `seed`: every owner has one concept, every seed is a version."""
        return ConceptRef(f"o{index + 1:02d}", self.class_name(index), seed + 1)

    def class_name(self, index: int) -> str:
        """The class of concept `index`."""
        from mos.smallworld.world import CLASSES

        return CLASSES[index % len(CLASSES)]

    def identity(self, index: int) -> "Identity":
        """The held-out individual that concept `index` is, the same for every training seed and method."""
        from mos.smallworld.world import CLASSES, concept_identity

        return concept_identity(100 + index // len(CLASSES), self.class_name(index))

    def subject(self, index: int, seed: int) -> "ClaimSubject":
        """Concept `index` of one training as scores know it: who it is and what it was trained on."""
        from mos.evaluation.claim import ClaimSubject
        from mos.smallworld.concepts import concept_pictures

        identity = self.identity(index)
        references = [picture for picture, _, _ in concept_pictures(identity, 100 + index)]
        return ClaimSubject(ref=self.ref(index, seed), identity=identity, references=references)


@dataclass(frozen=True)
class TableRun:
    """A table in a folder, on a base; without a scorer of its own the small world's judges, with its probe."""

    folder: Path
    config: TableConfig
    base: str | None = None
    scorer: str | None = None

    def concept_path(self, row: str, index: int, seed: int) -> Path:
        """Where one trained concept lies."""
        return self.folder / "concepts" / plain_name(row) / f"{index + 1:02d}-seed{seed}.safetensors"

    def fused_path(self, row: str, size: int, seed: int) -> Path:
        """Where one fused model lies."""
        return self.folder / "fused" / plain_name(row) / f"{size:02d}-seed{seed}"

    def settle(self, base: "BaseModel") -> None:
        """Note the base and the recipes of every row, or refuse to go on with others; sizes may grow.

        Raises:
            ConflictError: If the folder holds work of another base or of other recipes.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "table.json"
        noted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name, value in self._recipes(base).items():
            if noted.setdefault(name, value) != value:
                raise ConflictError(f"{path}: was begun with another {name}; choose another --out, or delete its work")
        path.write_text(json.dumps(noted, indent=1, sort_keys=True), encoding="utf-8")

    def _recipes(self, base: "BaseModel") -> dict[str, Any]:
        """What the files of the folder depend on, by name."""
        recipes: dict[str, Any] = {"base": dict(base.facts.fingerprint)}
        for row in self.config.singles:
            recipes[f"recipe of {row}"] = self.training(row, 0).recipe()
        for row in self.config.fusions:
            recipes[f"recipe of {row}"] = fusion_config(row).to_json()
        return recipes

    def training(self, row: str, seed: int) -> "TrainingConfig":
        """How the concepts of a row are trained."""
        from mos.training import PRESETS

        config = replace(PRESETS[SINGLES[row]], seed=seed)
        steps = self.config.training_steps
        return config if steps is None else replace(config, steps=steps)


def fusion_config(row: str) -> "FusionConfig":
    """How the models of a row are fused."""
    from mos.fusion.config import FusionConfig

    values: dict[str, Any] = dict(FUSIONS[row][1])
    return FusionConfig(measure=False, **values)


def fused_method(row: str, size: int) -> str:
    """The method's name of a fused row."""
    return f"{row} · {size}"


def plain_name(row: str) -> str:
    """A row's name as a folder's."""
    return "".join(c if c.isalnum() else "-" for c in row.lower().replace("+", "plus")).strip("-")
