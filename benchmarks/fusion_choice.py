"""Fit, held-out error and drift of each stage under every solver and regularisation: what the default rests on.

python -m benchmarks.fusion_choice                              random concepts on a random base of small-world shapes
python -m benchmarks.fusion_choice --base DIR a.safetensors b.safetensors ...       trained concepts on their base
python -m benchmarks.fusion_choice --paper-prompts --generic 12     the same as published, and with as many generic ones
python -m benchmarks.fusion_choice --individuals robot cat house    concepts trained first on the base, a minute each
python -m benchmarks.fusion_choice --stage cross-attention --generic 12 --generic 40 --choice exact:0.3:1e-2
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.preset_choice import individual
from mos.artifact import EDLoRA, read_artifact
from mos.base_model import BaseModel, load_base
from mos.concept import ConceptRef
from mos.fusion import FusionConfig, FusionSource, StageRule, fuse
from mos.fusion.config import PAPER_PROMPTS
from mos.random_base import random_base
from mos.random_concept import random_concept
from mos.training import preset_for, train_concept

CHOICES: tuple[tuple[str, float, float], ...] = (
    ("exact", 0.0, 0.0),
    ("exact", 0.0, 1e-4),
    ("exact", 0.0, 1e-2),
    ("exact", 0.03, 0.0),
    ("exact", 0.03, 1e-4),
    ("exact", 0.1, 1e-3),
    ("lbfgs", 0.0, 0.0),
    ("lbfgs", 0.03, 1e-4),
    ("lbfgs", 0.1, 1e-3),
)
"""(solver, weight of the generic prompts, ridge) of the stage under test."""


def config_of(
    stage: str,
    solver: str,
    generic_weight: float,
    ridge: float,
    num_generic: int | None = None,
    prompts: tuple[str, ...] | None = None,
) -> FusionConfig:
    """The default with one stage's rule and the solver replaced, on the first `num_generic` generic prompts.

    `prompts` are recorded of each concept instead of the default's.
    """
    steps = FusionConfig().spatial.steps if stage == "spatial" else FusionConfig().text_encoder.steps
    rule = StageRule(steps=steps, generic_weight=generic_weight, ridge=ridge)
    changes: dict[str, Any] = {stage.replace("-", "_"): rule, "solver": solver}
    changes["generic_prompts"] = FusionConfig().generic_prompts[:num_generic]
    if prompts is not None:
        changes["prompts"] = prompts
    return FusionConfig(**changes)


def until(source: FusionSource, stage: str) -> FusionSource:
    """The concept without the layers of later stages, which are dear and change nothing here."""
    kept = {
        component: {name: update for name, update in updates.items() if _is_needed(component, name, stage)}
        for component, updates in source.edlora.linears.items()
    }
    linears = {component: updates for component, updates in kept.items() if updates}
    return replace(source, edlora=replace(source.edlora, linears=linears))


def _is_needed(component: str, name: str, stage: str) -> bool:
    if component != "unet" or stage == "spatial":
        return True
    return stage == "cross-attention" and name.endswith((".attn2.to_k", ".attn2.to_v"))


def print_stage(
    base: BaseModel,
    sources: Sequence[FusionSource],
    stage: str,
    choices: Sequence[tuple[str, float, float]],
    num_generic: Sequence[int | None],
    *,
    cache: Path | None = None,
    prompts: tuple[str, ...] | None = None,
) -> None:
    """One table: a line for every choice, figures as means over the concepts."""
    print(f"\n{stage}\n| generic prompts | solver | generic | ridge | fit | held out | drift |", flush=True)
    print("|---:|---|---:|---:|---:|---:|---:|")
    needed = [until(source, stage) for source in sources]
    for count, (solver, generic_weight, ridge) in itertools.product(num_generic, choices):
        config = config_of(stage, solver, generic_weight, ridge, count, prompts)
        model = fuse(base, needed, config, cache=cache)
        figures = model.report["stages"][stage]
        fit, held_out = (
            sum(concept[name] for concept in figures["concepts"].values()) / len(sources)
            for name in ("fit", "held_out")
        )
        cells = (
            str(len(config.generic_prompts)),
            solver,
            f"{generic_weight:g}",
            f"{ridge:g}",
            f"{fit:.3f}",
            f"{held_out:.3f}",
            f"{figures['drift']:.3f}",
        )
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--stage", default="text-encoder", choices=("text-encoder", "cross-attention", "spatial"))
    parser.add_argument("--choice", action="append", default=[], metavar="SOLVER:G:R", help="instead of the nine")
    parser.add_argument("--generic", type=int, action="append", default=[], help="only the first N generic prompts")
    parser.add_argument("--paper-prompts", action="store_true", help="record the paper's two prompts of a concept")
    parser.add_argument("--cache", type=Path, help="keep recordings here")
    parser.add_argument("--individuals", nargs="+", default=[], metavar="CLASS", help="train these of the small world")
    parser.add_argument("--seed", type=int, default=7, help="of the individuals and of their training")
    parser.add_argument("concepts", nargs="*", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.concepts:
        base = load_base(arguments.base)
        sources = [
            _source(f"concept-{index}", read_artifact(path, base.facts))
            for index, path in enumerate(sorted(arguments.concepts))
        ]
    elif arguments.individuals:
        base = load_base(arguments.base)
        sources = [_trained(base, class_name, arguments.seed) for class_name in arguments.individuals]
    else:
        base = random_base(size="small")
        names = ("alice/robot@1", "bob/cat@1", "carol/house@1")
        component = "text_encoder" if arguments.stage == "text-encoder" else "unet"
        sources = [random_concept(base, name, seed, rank=4, components=(component,)) for seed, name in enumerate(names)]
    choices = [(text.split(":")[0], *map(float, text.split(":")[1:])) for text in arguments.choice] or CHOICES
    prompts = PAPER_PROMPTS if arguments.paper_prompts else None
    print_stage(
        base, sources, arguments.stage, choices, arguments.generic or [None], cache=arguments.cache, prompts=prompts
    )


def _trained(base: BaseModel, class_name: str, seed: int) -> FusionSource:
    """A held-out individual of the small world, trained by the base's own recipe."""
    _, data = individual(class_name, seed)
    return _source(class_name, train_concept(base, data, preset_for(base.facts).with_options(seed=seed)))


def _source(name: str, edlora: EDLoRA) -> FusionSource:
    return FusionSource(ref=ConceptRef("owner", name, 1), edlora=edlora)


if __name__ == "__main__":
    main()
