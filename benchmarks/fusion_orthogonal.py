"""Orthogonal bases on the training side (Orthogonal Adaptation, Po et al., CVPR 2024, arXiv:2312.02432): do they pay?

python -m benchmarks.fusion_orthogonal --out runs/orthogonal [--concepts DIR] [--count 3] [--pictures 12]

Every concept's `down` rows are taken from one orthogonal matrix of the site, another part for each concept, and stay
as they are while `up` is trained: the concepts' updates then read orthogonal parts of the input, and their plain sum
disturbs none of them as far as inputs spread evenly over those parts. Compared with free ED-LoRAs of the same
identities, pictures and steps: alone, summed, averaged and fused by gradient.
"""

import argparse
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.fusion_curve import SINGLE, Curve, CurveConfig, print_summary, run
from benchmarks.fusion_figures import summary
from mos.artifact import write_artifact
from mos.evaluation.drawing import supports_bfloat16
from mos.smallworld.concepts import concept_pictures
from mos.training import SlotSpec, Trainer, concept_data
from mos.training.parameters import ConceptParameters

METHODS = (SINGLE, "sum", "average", "gradient, lbfgs")


def orthogonal_rows(key: str, shape: tuple[int, ...], slot: int, rank: int) -> Tensor:
    """One concept's fixed rows of a site, [layers * rank, in]: the same for all layers that share the site.

    Rows have the mean length of the ordinary start, kaiming-uniform with a = sqrt(5): 1 / sqrt(3).

    Raises:
        ValueError: If the site is too narrow for one more concept.
    """
    width = shape[1]
    if (slot + 1) * rank > width:
        raise ValueError(f"{key}: {width} inputs hold {width // rank} concepts of rank {rank}")
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))
    basis: Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    rows = basis[slot * rank : (slot + 1) * rank] / 3**0.5
    return rows.repeat(shape[0] // rank, 1)


def fix_down(parameters: ConceptParameters, fixed: Mapping[str, Tensor]) -> None:
    """Put every site's `down` back, [slots, layers * rank, in] each."""
    with torch.no_grad():
        for bank in parameters.banks.values():
            for name, leaf in bank.leaves.items():
                if name in fixed:
                    leaf.copy_(fixed[name])


def train_orthogonal(curve: Curve, count: int) -> None:
    """Train the first concepts together on fixed orthogonal rows, and write them where the curve looks for them."""
    paths = [curve.table.concept_path("ED-LoRA", index, 0) for index in range(count)]
    if all(path.exists() for path in paths):
        return
    trainer, table = Trainer(curve.base), curve.config.table
    config = curve.table.training("ED-LoRA", 0)
    config = replace(config, precision="bf16") if supports_bfloat16() else config
    for index in range(count):
        name = table.class_name(index)
        pictures = concept_pictures(table.identity(index), 100 + index)
        data = concept_data(pictures, name=name, class_word=name)
        trainer.admit(SlotSpec(key=str(index), data=data, config=config))
    parameters = trainer._parameters
    assert parameters is not None
    fixed = {
        name: torch.stack([orthogonal_rows(name, shape, slot, config.rank) for slot in range(count)])
        for bank in parameters.banks.values()
        for name, shape in bank.shapes.items()
        if name.endswith(".down")
    }
    for _ in range(config.steps - 1):
        fix_down(parameters, fixed)
        trainer.step()
    fix_down(parameters, fixed)
    for index, path in enumerate(paths):  # one step before they would leave with rows moved by the last step
        path.parent.mkdir(parents=True, exist_ok=True)
        write_artifact(trainer.snapshot(str(index)), path)


def main() -> None:
    """Train, fuse, draw and print both kinds side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--concepts", type=Path, help="folder of trained free concepts; default: train them too")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--training-steps", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = CurveConfig(sizes=(arguments.count,), pictures=arguments.pictures, training_steps=arguments.training_steps)
    for kind, concepts in (("free", arguments.concepts), ("orthogonal", None)):
        curve = Curve(arguments.out / kind, config, None, concepts)
        if kind == "orthogonal":
            train_orthogonal(curve, arguments.count)
        curve.settle()
        found = run(curve, arguments.count, METHODS)
        print(f"\n{kind} bases")
        print_summary(summary(curve, found))


if __name__ == "__main__":
    main()
