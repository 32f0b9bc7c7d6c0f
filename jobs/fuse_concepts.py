"""From `owner/name` of a registry to a fused model in a folder: resolve, lock, pull, fuse on Ray, publish.

Besides the model the folder holds `fused.lock.json`: for every concept its version and the digests of its
manifest and weights, so that the same fusion can be repeated and checked years later.
"""

import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.concept_output import lock_entry
from jobs.opening import open_base
from jobs.recordings import note_recordings
from jobs.specs import FusionSpec
from mos.concept import ConceptRef
from mos.errors import BadInputError

if TYPE_CHECKING:
    from cluster.pool import PoolOptions
    from cluster.timeline import WorkInterval
    from mos.base_model import BaseModel
    from mos.fusion import FusedModel, FusionConfig, FusionSource
    from registry import Registry, Resolved

LOCKFILE = "fused.lock.json"
TIMEFILE = "fused.times.json"
LOCK_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class FusionTime:
    """How long a fusion took.

    Attributes:
        seconds: On the clock, workers' start included, without starting Ray or loading the driver's base.
        spared_seconds: CPU seconds that recordings found in the cache took when they were made.
    """

    seconds: float
    spared_seconds: float = 0.0

    def __str__(self) -> str:
        if self.spared_seconds == 0:
            return f"{self.seconds:.1f} s from scratch"
        return f"{self.seconds:.1f} s; from scratch also the {self.spared_seconds:.1f} CPU s of recordings in the cache"


@dataclass(frozen=True, kw_only=True)
class FusionOutcome:
    """A fused model on disk and how it came about.

    Attributes:
        model: The fused model.
        out: Its folder.
        published: `owner/name@version`, or empty.
        intervals: Who recorded and solved what, when.
        locked: The lockfile's entries.
        time: How long it took.
    """

    model: "FusedModel"
    out: Path
    published: str = ""
    intervals: Sequence["WorkInterval"] = ()
    locked: Sequence[dict[str, Any]] = field(default_factory=list)
    time: FusionTime = FusionTime(seconds=0.0)


def resolve_all(registry: "Registry", spec: FusionSpec) -> list["Resolved"]:
    """Find every concept's version and check its state and licence before anything is computed.

    Raises:
        NotFoundError: If there is no such concept or version.
        NotAllowedError: If one is not listed, or its licence forbids merging.
    """
    from registry.licence import combined

    found = [registry.resolve(ref, allow_unlisted=spec.allow_unlisted) for ref in spec.refs]
    combined({item.ref: item.manifest.licence for item in found})
    return found


def lock_entries(found: Sequence["Resolved"]) -> list[dict[str, Any]]:
    """What the lockfile says of each concept."""
    return [lock_entry(item) for item in found]


def describe_fusion(spec: FusionSpec, run_id: str, found: Sequence["Resolved"]) -> dict[str, Any]:
    """What `--dry-run` prints: resources, estimated minutes, bytes and digests."""
    from cluster.placement import solver
    from cluster.pool import PoolOptions
    from jobs.estimates import estimate_fusion
    from jobs.opening import open_base

    facts = open_base(spec.base or None).facts
    return {
        "run": run_id,
        "concepts": lock_entries(found),
        "bytes": sum(item.manifest.weights.size_bytes for item in found),
        "base": facts.name,
        "base_fingerprint": dict(facts.fingerprint),
        "out": spec.out,
        "resources": f"{PoolOptions().num_workers} workers with {solver()} each",
        "estimate": estimate_fusion(fusion_config(spec), len(found), facts),
    }


def check_lock(out: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Refuse to replace a fusion of other concepts.

    Raises:
        BadInputError: If the folder holds a fusion with another lockfile.
    """
    path = out / LOCKFILE
    if not path.exists():
        return
    locked = json.loads(path.read_text())["concepts"]
    if locked != list(entries):
        before = ", ".join(entry["ref"] for entry in locked)
        raise BadInputError(f"{out}: holds a fusion of {before}; choose another folder with --out")


def load_sources(
    registry: "Registry", found: Sequence["Resolved"], base: "BaseModel", config: "FusionConfig | None" = None
) -> list["FusionSource"]:
    """Pull every concept, verified, and read it strictly against the base.

    Another base's concepts and those with too large norms are refused here, unless the config says how the fusion
    is to take them; it then checks them itself.

    Raises:
        BaseMismatchError: If one was trained on another base; names it.
        BadInputError: If one is a fusion, or its file does not fit the base.
    """
    from mos.fusion import FusionConfig

    config = FusionConfig() if config is None else config
    return [_load_source(registry, item, base, config) for item in found]


def _load_source(registry: "Registry", item: "Resolved", base: "BaseModel", config: "FusionConfig") -> "FusionSource":
    from mos.artifact import ArtifactError, read_artifact, read_artifact_header
    from mos.fusion import FusionSource
    from mos.fusion.source import check_base

    if item.manifest.kind != "concept":
        parts = ", ".join(str(source.ref) for source in item.manifest.lineage)
        raise BadInputError(f"{item.ref}: is a fusion and cannot be fused again; fuse what it was made of: {parts}")
    path = registry.pull(item)
    is_lenient = config.allow_base_mismatch or config.clip_norm is not None
    try:
        check_base(str(item.ref), read_artifact_header(path).card, base.facts, config)
        edlora = read_artifact(path, None if is_lenient else base.facts)
    except ArtifactError as error:
        raise ArtifactError(f"{item.ref}: {error}") from error
    return FusionSource(ref=item.ref, edlora=edlora, sha256=item.manifest.weights.sha256)


def fusion_config(spec: FusionSpec) -> "FusionConfig":
    """The options of a spec; `strategy`, `solver`, `sampling_steps`, ... as `mos.fusion.FusionConfig` names them.

    Raises:
        BadInputError: If there is no such option or a value is out of range.
    """
    from mos.fusion import FusionConfig

    return FusionConfig.from_json(FusionConfig().to_json() | dict(spec.options))


def fuse_on_ray(
    base: "BaseModel",
    base_name: str,
    sources: Sequence["FusionSource"],
    config: "FusionConfig",
    options: "PoolOptions",
    *,
    say: Callable[[str], None],
    cache: Path | None = None,
) -> tuple["FusedModel", list["WorkInterval"]]:
    """Fuse on the connected Ray; returns the model and who did what when."""
    from cluster.fusion import RayFusionExecutor
    from cluster.timeline import measured
    from mos.fusion import fuse

    intervals: list[WorkInterval] = []
    with measured(intervals, "driver", "fusion", "driver"):
        if config.strategy != "gradient":
            return fuse(base, sources, config, progress=say), intervals
        with (
            RayFusionExecutor(base_name, config, options, on_interval=intervals.append, on_retry=say) as executor,
            warnings.catch_warnings(),
        ):
            # Ray maps results read-only into memory; torch warns of that, and nothing writes to them.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
            model = fuse(base, sources, config, executor=executor, progress=say, cache=cache)
    return model, intervals


def write_outcome(model: "FusedModel", out: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write model and lockfile; the lockfile last."""
    from mos.fusion import write_fused

    write_fused(model, out)
    document = {"format": LOCK_FORMAT, "concepts": list(entries)}
    (out / LOCKFILE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def write_time(out: Path, spent: FusionTime) -> None:
    """Note how long a fusion took, in a file of its own: equal inputs give equal models, not equal times."""
    (out / TIMEFILE).write_text(json.dumps(asdict(spent)) + "\n")


def read_time(out: Path) -> FusionTime | None:
    """How long the fusion in a folder took, or None where nobody noted it."""
    try:
        noted = json.loads((out / TIMEFILE).read_text())
        return FusionTime(**{name: float(value) for name, value in noted.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def publish_fusion(registry: "Registry", out: Path, publish: str, run_id: str, *, allow_unlisted: bool) -> ConceptRef:
    """Publish a fused model with its lineage.

    Raises:
        NotFoundError: If the owner's key is not on this machine.
        LicenceError: If a source forbids it.
    """
    target = ConceptRef.parse(publish)
    key = registry.new_owner(target.owner) if registry.may_index else registry.home.owner_key(target.owner)
    ref = registry.publish(out, target, key=key, run_id=run_id, allow_unlisted=allow_unlisted)
    if registry.may_index:
        registry.index()
    return ref


def run_fusion(
    spec: FusionSpec,
    registry: "Registry",
    *,
    ray_address: str | None = None,
    num_workers: int = 2,
    say: Callable[[str], None],
    cache: Path | None = None,
    merge: Path | None = None,
) -> FusionOutcome:
    """The whole way from a spec to a folder, on a private Ray or the one at `ray_address`.

    `cache` keeps what was recorded of single concepts for later fusions; `merge` is a folder for a complete diffusers
    pipeline besides.

    Raises:
        MosError: Whatever is wrong with concepts, licences, options, folder or cluster; nothing is written then.
    """
    from cluster.placement import solver
    from cluster.pool import PoolOptions
    from cluster.session import connected
    from mos.formats.merged import write_merged

    found = resolve_all(registry, spec)
    entries = lock_entries(found)
    out = Path(spec.out)
    check_lock(out, entries)
    config = fusion_config(spec)
    base = open_base(spec.base or None)
    sources = load_sources(registry, found, base, config)
    say(f"fusing {', '.join(entry['ref'] for entry in entries)}")
    with connected(ray_address):
        started = time.monotonic()
        options = PoolOptions(num_workers=num_workers, resources=solver())
        model, intervals = fuse_on_ray(base, spec.base, sources, config, options, say=say, cache=cache)
        seconds = time.monotonic() - started
    spent = FusionTime(seconds=seconds, spared_seconds=sum(stage["spared_seconds"] for stage in model.times.values()))
    say(f"fused in {spent}")
    write_outcome(model, out, entries)
    write_time(out, spent)
    if cache is not None:
        note_recordings(out, cache)
    if merge is not None:
        write_merged(model.adapter, base, merge, layered_words=False)
        say(f"wrote the pipeline {merge}; its words have one embedding, the mean over the layers")
    published = ""
    if spec.publish:
        run_id = spec.run_id({entry["ref"]: entry["manifest_sha256"] for entry in entries})
        published = str(publish_fusion(registry, out, spec.publish, run_id, allow_unlisted=spec.allow_unlisted))
    return FusionOutcome(model=model, out=out, published=published, intervals=intervals, locked=entries, time=spent)
