"""Batch evaluation as a Ray Data pipeline: draw blocks, score them, write them; what is there is skipped.

A block is written whole or not at all and under a name that says what it holds, so a pipeline that is killed
anywhere is simply run again. Two runs at once do some work twice and write every row once.
"""

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.evaluation_rows import Objects, ScoreStore
from cluster.machine import device
from cluster.placement import Resources, check_satisfiable, nodes_of, share_of_gpu
from mos.evaluation.batch import BatchConfig, Block, BlockDrawer, BlockScorer, EvaluatedModel, plan_blocks
from mos.evaluation.scoring import ConceptTruth, PictureScorer

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from PIL import Image

    from mos.edlora.adapter import Adapter
    from mos.evaluation.attributes import Probe

OnBlock = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """Everything a worker needs to know to draw and score any block.

    Attributes:
        config: What all pictures share.
        models: What draws.
        truths: Concept reference -> what it really is.
        adapters: Source of a model -> its weights; they travel to the workers with the job.
        registry_url: Where the scores go.
        base: Path or hub id of the base; None is the small world.
        scorer: Path of the CLIP scorer; None is the small world's.
        use_probe: Whether the small world's attribute probe reads the pictures.
    """

    config: BatchConfig
    models: tuple[EvaluatedModel, ...]
    truths: Mapping[str, ConceptTruth]
    adapters: Mapping[str, "Adapter"]
    registry_url: str
    base: str | None = None
    scorer: str | None = None
    use_probe: bool = True

    def blocks(self) -> tuple[Block, ...]:
        """All blocks, done or not."""
        return plan_blocks(self.config, self.models, self.truths)


@dataclass(frozen=True, kw_only=True)
class EvaluationOutcome:
    """What a run did: blocks found there, blocks made, and rows made."""

    digest: str
    num_found: int
    num_made: int
    num_rows: int


def score_store(registry_url: str, digest: str) -> ScoreStore:
    """The scores of one evaluation in a registry: `evaluations/<digest>/`."""
    from registry.layout import check_sha256
    from registry.objects.location import open_store
    from registry.runs import ObjectPrefix

    objects: Objects = ObjectPrefix(open_store(registry_url), f"evaluations/{check_sha256(digest)}/")
    return ScoreStore(objects)


def evaluations(registry_url: str) -> list[str]:
    """Digests of the evaluations a registry holds."""
    from registry.objects.location import open_store

    keys = (stored.key.split("/") for stored in open_store(registry_url).list("evaluations/"))
    return sorted({parts[1] for parts in keys if len(parts) == 3 and len(parts[1]) == 64})


def forget_pictures(registry_url: str, concepts: Collection[str]) -> int:
    """Remove from every evaluation what shows one of these concepts (owner/name@version); returns how many pictures."""
    return sum(score_store(registry_url, digest).forget(concepts) for digest in evaluations(registry_url))


def run_evaluation(
    job: EvaluationJob, *, num_drawers: int = 2, drawer_cpus: float = 0.6, on_block: OnBlock | None = None
) -> EvaluationOutcome:
    """Run what is missing of a job on the Ray this process is connected to.

    Args:
        job: What to evaluate.
        num_drawers: Processes that draw.
        drawer_cpus: CPUs each of them asks for, besides the share of a GPU in MOS_EVALUATION_GPUS; the scorer asks
            for a quarter of a CPU.
        on_block: Called with (blocks done, blocks in all) as blocks arrive.

    Raises:
        UnsatisfiableError: If no node could ever hold a process that draws, which Ray Data would await for ever.
    """
    import pyarrow as pa
    import ray.data

    blocks, store = _prepared(job)
    found = store.done()
    missing = [index for index, block in enumerate(blocks) if block.name not in found]
    num_made = num_rows = 0
    if missing:
        drawer = Resources(num_cpus=drawer_cpus, num_gpus=share_of_gpu("MOS_EVALUATION_GPUS", 0.0))
        check_satisfiable("evaluation", drawer, nodes_of(ray.nodes()))
        _quiet()
        pieces = ray.data.from_arrow([pa.table({"index": [index]}) for index in missing])
        drawn = pieces.map_batches(
            _DrawStage,
            fn_constructor_args=(job,),
            batch_format="pyarrow",
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(num_drawers, len(missing))),
            num_cpus=drawer.num_cpus,
            num_gpus=drawer.num_gpus or None,
        )
        written = drawn.map_batches(
            _ScoreStage,
            fn_constructor_args=(job,),
            batch_format="pyarrow",
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=0.25,
        )
        for row in written.iter_rows():
            num_made += int(row["created"])
            num_rows += int(row["rows"]) if row["created"] else 0
            if on_block is not None:
                on_block(len(blocks) - len(missing) + num_made, len(blocks))
    return EvaluationOutcome(
        digest=job.config.digest, num_found=len(blocks) - len(missing), num_made=num_made, num_rows=num_rows
    )


def run_serially(
    job: EvaluationJob, *, drawer: BlockDrawer | None = None, on_block: OnBlock | None = None
) -> EvaluationOutcome:
    """The same in this process, without Ray; `drawer` saves loading a base that is loaded already."""
    blocks, store = _prepared(job)
    found = store.done()
    missing = [block for block in blocks if block.name not in found]
    num_made = num_rows = 0
    if missing:
        drawer, scorer = drawer or _drawer(job), _scorer(job)
        for block in missing:
            images = drawer.draw(block)
            rows = scorer.score(block, images)
            if store.write(block.name, rows, images):
                num_made, num_rows = num_made + 1, num_rows + len(rows)
            if on_block is not None:
                on_block(len(blocks) - len(missing) + num_made, len(blocks))
    return EvaluationOutcome(
        digest=job.config.digest, num_found=len(blocks) - len(missing), num_made=num_made, num_rows=num_rows
    )


def _prepared(job: EvaluationJob) -> tuple[tuple[Block, ...], ScoreStore]:
    store = score_store(job.registry_url, job.config.digest)
    store.record(job.config.to_json())
    return job.blocks(), store


class _DrawStage:
    """Draws one block a call: index in, pictures out."""

    def __init__(self, job: EvaluationJob) -> None:
        self._blocks, self._drawer = job.blocks(), _drawer(job)

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        import pyarrow as pa

        (index,) = batch.column("index").to_pylist()
        pictures = [_encode(image) for image in self._drawer.draw(self._blocks[index])]
        return pa.table({"index": [index], "pictures": pa.array([pictures], pa.list_(pa.binary()))})


class _ScoreStage:
    """Scores and writes one block a call: pictures in, counts out."""

    def __init__(self, job: EvaluationJob) -> None:
        self._blocks, self._scorer = job.blocks(), _scorer(job)
        self._store = score_store(job.registry_url, job.config.digest)

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        import pyarrow as pa

        (index,), (pictures,) = batch.column("index").to_pylist(), batch.column("pictures").to_pylist()
        images = [_decode(data) for data in pictures]
        block = self._blocks[index]
        rows = self._scorer.score(block, images)
        created = self._store.write(block.name, rows, images)
        return pa.table({"block": [block.name], "rows": [len(rows)], "created": [created]})


def _drawer(job: EvaluationJob) -> BlockDrawer:
    from mos.base_model import load_base

    return BlockDrawer(
        base=load_base(job.base, device=device()),
        config=job.config,
        models={model.name: model for model in job.models},
        truths=job.truths,
        adapters=job.adapters,
    )


def _scorer(job: EvaluationJob) -> BlockScorer:
    return BlockScorer(
        pictures=open_scorer(job.scorer, use_probe=job.use_probe, text_prefix=job.config.suite.text_prefix),
        config=job.config,
        models={model.name: model for model in job.models},
        truths=job.truths,
    )


def open_scorer(scorer: str | None, *, use_probe: bool, text_prefix: str) -> PictureScorer:
    """Open a CLIP scorer, the small world's by default, with the small world's probe beside it if asked."""
    from mos.evaluation.scorer import ClipScorer

    clip = ClipScorer.load(_small_world_scorer() if scorer is None else scorer)
    return PictureScorer(clip=clip, probe=_small_world_probe() if use_probe else None, text_prefix=text_prefix)


def _small_world_scorer() -> "Path":
    from mos.smallworld.assets import scorer_path

    return scorer_path()


def _small_world_probe() -> "Probe":
    from mos.smallworld.assets import load_probe

    return load_probe()


def _quiet() -> None:
    """Keep Ray Data's progress bars and plans off the terminal: progress is the caller's."""
    import logging
    import warnings

    import ray.data

    with warnings.catch_warnings():
        # Making its context, Ray Data 2.60 sets options that it deprecates itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _encode(image: "Image.Image") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _decode(data: bytes) -> "Image.Image":
    from PIL import Image

    image = Image.open(io.BytesIO(data))
    image.load()
    return image.convert("RGB")


def missing_blocks(job: EvaluationJob) -> Sequence[Block]:
    """The blocks a run would make now."""
    found = score_store(job.registry_url, job.config.digest).done()
    return [block for block in job.blocks() if block.name not in found]
