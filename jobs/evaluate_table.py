"""The paper's table on the small world: train, fuse, draw, score and report, from one resumable command.

    python -m jobs.evaluate_table --out runs/table                 # 14 concepts, 3 training seeds
    python -m jobs.evaluate_table --out runs/table --concepts 3 --seeds 1 --sizes 3
    python -m jobs.evaluate_table --out runs/table --until train   # stop after training
    python -m jobs.evaluate_table --out runs/table --until nothing # the page of what is there

What is there is not made again, in whatever size it was begun: concepts and fused models are files named by
what they are, pictures and scores are blocks of an evaluation in the registry under the same folder.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.table_config import FUSIONS, SCALE_ZERO, SINGLES, TableConfig, TableRun, fused_method
from jobs.table_tasks import fusion_tasks, perform, table_base, training_tasks
from mos.errors import MosError, NotFoundError

UNTIL = ("nothing", "train", "fuse", "draw")

if TYPE_CHECKING:
    from cluster.evaluation import EvaluationJob
    from mos.base_model import BaseModel
    from mos.edlora.adapter import Adapter
    from mos.evaluation.batch import EvaluatedModel
    from mos.evaluation.claim import ClaimSubject


def table_job(run: TableRun, *, only_present: bool = False) -> "EvaluationJob":
    """Every model of the table, or every one whose files are there, as one evaluation in the folder's registry."""
    from cluster.evaluation import EvaluationJob, open_scorer
    from mos.evaluation.batch import BatchConfig, marks, scorer_digest, untrained_base
    from mos.evaluation.claim import ClaimConfig, claim_truths
    from mos.evaluation.drawing import supports_bfloat16
    from mos.evaluation.prompts import load_suite

    base, suite = table_base(run.base), load_suite(run.config.suite)
    truths = {truth.ref: truth for truth in claim_truths(_subjects(run.config), ClaimConfig())}
    models, adapters = _models(run, base, only_present)
    first = [str(run.config.ref(index, 0)) for index in range(run.config.num_concepts)]
    use_probe = run.scorer is None
    scorer = open_scorer(run.scorer, use_probe=False, text_prefix=suite.text_prefix)
    (run.folder / "registry").mkdir(exist_ok=True)
    return EvaluationJob(
        config=BatchConfig(
            suite=suite,
            num_seeds=run.config.prompt_seeds,
            num_inference_steps=run.config.num_inference_steps,
            guidance_scale=run.config.guidance_scale,
            batch_size=20,
            prompts_per_block=10,
            bfloat16=supports_bfloat16(),
            base_digest=",".join(f"{name}:{value}" for name, value in sorted(base.facts.fingerprint.items())),
            scorer_digest=scorer_digest(scorer) + ("+probe" if use_probe else ""),
        ),
        models=(*marks(first), untrained_base(first), *models),
        truths=truths,
        adapters=adapters,
        registry_url=str(run.folder / "registry"),
        base=run.base,
        scorer=run.scorer,
        use_probe=use_probe,
    )


def _models(run: TableRun, base: "BaseModel", only_present: bool) -> "tuple[list[EvaluatedModel], dict[str, Adapter]]":
    """Single and fused models with their weights, what is compared first close together."""
    from mos.artifact import read_artifact
    from mos.evaluation.batch import EvaluatedModel, adapter_digest
    from mos.fusion.model import read_fused

    models: list[EvaluatedModel] = []
    adapters: dict[str, Adapter] = {}

    def add(name: str, method: str, adapter: "Adapter", scale: float = 1.0) -> None:
        adapters[name] = adapter
        concepts = tuple(words.ref for words in adapter.vocabulary)
        digest = adapter_digest(adapter)
        models.append(
            EvaluatedModel(name=name, method=method, concepts=concepts, digest=digest, source=name, scale=scale)
        )

    config = run.config
    for seed in range(config.num_seeds):
        for row in reversed(config.singles):
            for index in range(config.num_concepts):
                ref, path = config.ref(index, seed), run.concept_path(row, index, seed)
                if only_present and not path.exists():
                    continue
                adapter = read_artifact(path, base.facts).adapter(ref)
                add(f"{row} {ref}", row, adapter)
                if row == "ED-LoRA":
                    add(f"{SCALE_ZERO} {ref}", SCALE_ZERO, adapter, 0.0)
        for size in config.sizes:
            for row in config.fusions:
                path = run.fused_path(row, size, seed)
                if only_present and not (path / "fused.json").exists():
                    continue
                add(f"{row} of {size}, seed {seed}", fused_method(row, size), read_fused(path, base.facts).adapter)
    return models, adapters


def _subjects(config: TableConfig) -> "list[ClaimSubject]":
    return [config.subject(index, seed) for index in range(config.num_concepts) for seed in range(config.num_seeds)]


def evaluate(run: TableRun, num_workers: int, say: Callable[[str], None]) -> tuple[str, list[str]]:
    """Draw and score what is missing; returns the evaluation's digest and the names of its blocks.

    The store may hold further blocks: those of concepts that were lost and trained again to other bytes.
    """
    from cluster.evaluation import run_evaluation, run_serially

    job = table_job(run)
    blocks = [block.name for block in job.blocks()]

    def on_block(done: int, total: int) -> None:
        say(f"block {done} of {total}")

    if num_workers == 1:
        return run_serially(job, on_block=on_block).digest, blocks
    from cluster.session import local_ray

    with local_ray(num_cpus=num_workers):
        return run_evaluation(job, num_drawers=num_workers, on_block=on_block).digest, blocks


def drawn(run: TableRun) -> tuple[str, list[str]]:
    """The evaluation's digest and its blocks that are there, of the models that are there.

    Raises:
        NotFoundError: If nothing has been drawn yet.
    """
    from cluster.evaluation import score_store

    job = table_job(run, only_present=True)
    found = score_store(job.registry_url, job.config.digest).done()
    blocks = [block.name for block in job.blocks() if block.name in found]
    if not blocks:
        raise NotFoundError(f"{run.folder}: nothing was drawn with these settings yet; leave --until out to draw")
    return job.config.digest, blocks


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the table; go on there.")
@click.option("--concepts", "num_concepts", default=14, show_default=True)
@click.option("--seeds", "num_seeds", default=3, show_default=True, help="Trainings of each concept.")
@click.option("--sizes", default="3,5,10,14", show_default=True, help="How many concepts are fused.")
@click.option("--suite", default="small-world", show_default=True, help="Prompts: a suite's name or a TOML file.")
@click.option("--prompt-seeds", default=2, show_default=True, help="Pictures of each prompt.")
@click.option("--steps", "num_inference_steps", default=12, show_default=True, help="Denoising steps.")
@click.option("--guidance", "guidance_scale", default=3.0, show_default=True)
@click.option("--training-steps", type=int, default=None, help="Steps of every training; default the presets'.")
@click.option("--singles", default=",".join(SINGLES), show_default=True, help="Rows to train.")
@click.option("--fusions", default=",".join(FUSIONS), show_default=True, help="Rows to fuse.")
@click.option("--slots", "num_slots", default=7, show_default=True, help="Concepts trained together in a process.")
@click.option("--workers", "num_workers", default=2, show_default=True, help="Processes.")
@click.option("--base", default=None, help="Base model; default the small world.")
@click.option("--scorer", default=None, help="Another transformers CLIPModel; the probe then stays out.")
@click.option("--until", type=click.Choice(UNTIL), default="draw", show_default=True, help="Last step to take.")
@click.option("--docs", type=click.Path(path_type=Path), default=None, help="Also write the table as this page.")
def main(
    out: Path, sizes: str, singles: str, fusions: str, num_slots: int, num_workers: int, base: str | None,
    scorer: str | None, until: str, docs: Path | None, **values: Any,
) -> None:  # fmt: skip
    """Make the paper's table on the small world, or go on with it."""
    from jobs.evaluate_claims import write_claims

    def say(line: str) -> None:
        click.echo(line, err=True)

    def names(text: str) -> Sequence[str]:
        return tuple(name.strip() for name in text.split(",") if name.strip())

    try:
        config = TableConfig(
            sizes=tuple(int(size) for size in names(sizes)), singles=tuple(names(singles)),
            fusions=tuple(names(fusions)), **values,
        )  # fmt: skip
        run = TableRun(out, config, base, scorer)
        run.settle(table_base(base))
        last = UNTIL.index(until)
        if last >= UNTIL.index("train"):
            perform(training_tasks(run, num_slots), num_workers, say)
        if last >= UNTIL.index("fuse"):
            perform(fusion_tasks(run), num_workers, say)
        if until in ("train", "fuse"):
            click.echo(str(out))
            return
        digest, blocks = evaluate(run, num_workers, say) if until == "draw" else drawn(run)
        click.echo(str(write_claims(run, digest, blocks, docs)))
    except MosError as error:
        click.echo(f"mos: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
