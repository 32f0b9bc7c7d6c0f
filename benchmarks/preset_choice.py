"""`python -m benchmarks.preset_choice`: what the small world's recipe costs and keeps, beside other recipes.

Every variant trains the same individuals (not the demo's: another seed) and is judged by the probe: the share
of pictures in which it reads class, colours, pattern and accessory of the individual, with the whole concept
and with its words alone. A variant is written as changed options, `steps=160,min_snr_power=0.5`; "" is the
preset as it is. With `--seed 2026` they are the demo's, for figures of it, not for choosing.
"""

from __future__ import annotations

import argparse
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.results_file import Row, write_results
from mos.artifact import EDLoRA, read_artifact, write_artifact
from mos.base_model import BaseModel, load_base
from mos.concept import ConceptRef
from mos.edlora.adapter import Adapter
from mos.evaluation.claim import ClaimConfig, ClaimSubject, measure_cell
from mos.evaluation.intervals import bootstrap_mean
from mos.evaluation.scorer import ClipScorer
from mos.evaluation.scoring import PictureScorer
from mos.smallworld.assets import load_probe, scorer_path
from mos.smallworld.concepts import concept_identity, concept_pictures
from mos.training import ConceptData, concept_data, preset_for, train_concept
from mos.training.judging import EmbeddingShare, embedding_share

CLASSES = ("robot", "cat", "house")
IDENTITY = "probe_identity"


def main() -> None:
    """Train and judge every variant, print, and write benchmarks/results/preset_choice.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", default=[""], metavar="NAME=VALUE,...")
    parser.add_argument("--base", help="diffusers folder; default the small world")
    parser.add_argument("--classes", nargs="+", default=CLASSES, help="one individual each")
    parser.add_argument("--seed", type=int, default=7, help="of the individuals and of training")
    parser.add_argument("--pictures", type=int, default=36, help="judged a concept")
    parser.add_argument("--keep", type=Path, help="folder for the concepts' files; what is there is not trained again")
    parser.add_argument("--without-words", action="store_true", help="leave out the pictures by the words alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base(options.base)
    scorer = PictureScorer(clip=ClipScorer.load(scorer_path()), probe=load_probe())
    config = ClaimConfig(pictures_per_concept=options.pictures)
    chosen = [individual(class_name, options.seed) for class_name in options.classes]
    rows: list[Row] = []
    for text in options.variants:
        concepts, found = trained(base, text, chosen, options.seed, options.keep)
        found += measure(base, scorer, text, chosen, concepts, config, has_words=not options.without_words)
        print("\n".join(f"{row.name:<70} {row.value:8.3f} {row.unit}  {row.how}" for row in found), flush=True)
        rows += found
    write_results("preset_choice", rows)


def trained(
    base: BaseModel, text: str, individuals: Sequence[tuple[ClaimSubject, ConceptData]], seed: int, keep: Path | None
) -> tuple[list[EDLoRA], list[Row]]:
    """Train every individual by one variant, or read it from `keep`; the concepts, and what training one took."""
    config = preset_for(base.facts).with_options(**{"seed": seed} | parsed(text))
    concepts, seconds = [], []
    for _, data in individuals:
        path = None if keep is None else keep / f"{text or 'preset'}-{data.name}-{seed}.safetensors"
        if path is not None and path.exists():
            concepts.append(read_artifact(path, base.facts))
            continue
        started = time.process_time()
        concepts.append(train_concept(base, data, config))
        seconds.append(time.process_time() - started)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_artifact(concepts[-1], path)
    row = Row(
        name=f"{text or 'preset'}: training", value=fmean(seconds or [0]), unit="CPU s a concept", how=f"seed {seed}"
    )
    return concepts, [row] if seconds else []


def measure(
    base: BaseModel,
    scorer: PictureScorer,
    text: str,
    individuals: Sequence[tuple[ClaimSubject, ConceptData]],
    concepts: Sequence[EDLoRA],
    config: ClaimConfig,
    *,
    has_words: bool,
) -> list[Row]:
    """What is kept of each individual, and how much of the gain in loss its words bring."""
    name, subjects = text or "preset", [subject for subject, _ in individuals]
    rows = kept(base, scorer, name, subjects, adapters(subjects, concepts), config)
    if has_words:
        rows += kept(base, scorer, f"{name}, words alone", subjects, adapters(subjects, concepts, words=True), config)
    for (subject, data), edlora in zip(individuals, concepts, strict=True):
        rows.append(share_row(name, subject, embedding_share(base, data, edlora)))
    return rows


def individual(class_name: str, seed: int) -> tuple[ClaimSubject, ConceptData]:
    """A held-out individual with eight pictures, as a subject of the claim and as training data."""
    identity = concept_identity(seed, class_name)
    pictures = concept_pictures(identity, seed)
    data = concept_data(pictures, name=class_name, class_word=class_name, kind="object")
    references = tuple(picture for picture, _, _ in pictures)
    return ClaimSubject(ref=ConceptRef("owner", class_name, 1), identity=identity, references=references), data


def adapters(
    subjects: Sequence[ClaimSubject], concepts: Sequence[EDLoRA], *, words: bool = False
) -> dict[str, Adapter]:
    """What draws each concept: all of it, or its words with the base's own weights."""
    whole = {str(subject.ref): edlora.adapter(subject.ref) for subject, edlora in zip(subjects, concepts, strict=True)}
    if not words:
        return whole
    return {name: Adapter(linears={}, vocabulary=adapter.vocabulary) for name, adapter in whole.items()}


def kept(
    base: BaseModel,
    scorer: PictureScorer,
    name: str,
    subjects: Sequence[ClaimSubject],
    drawn_by: Mapping[str, Adapter],
    config: ClaimConfig,
) -> list[Row]:
    """Identity kept by the probe, of each concept and of all."""
    outcome = measure_cell(base, scorer, subjects, "single", drawn_by, config)
    by_concept = {
        str(subject.ref): [row.scores[IDENTITY] for row in outcome.rows if row.concept == str(subject.ref)]
        for subject in subjects
    }
    rows = [
        Row(name=f"{name}: {ref}", value=fmean(scores), unit="identity kept", how=f"{len(scores)} pictures")
        for ref, scores in by_concept.items()
    ]
    every = bootstrap_mean([score for scores in by_concept.values() for score in scores])
    how = f"95 % over {every.count} pictures: {every.low:.3f} to {every.high:.3f}"
    return [*rows, Row(name=f"{name}: all", value=every.mean, unit="identity kept", how=how)]


def share_row(name: str, subject: ClaimSubject, share: EmbeddingShare) -> Row:
    """The words' share of the gain in loss."""
    how = f"loss {share.plain:.4f} by class word, {share.embedding:.4f} by words, {share.full:.4f} with LoRA"
    return Row(name=f"{name}: {subject.ref}", value=share.share, unit="words' share of the gain", how=how)


def parsed(text: str) -> dict[str, Any]:
    """`a=1,b=2` as options; values as in TOML."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    return {name: tomllib.loads(f"value = {value}")["value"] for name, _, value in pairs}


if __name__ == "__main__":
    main()
