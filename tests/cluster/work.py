"""The work that fault tests disturb, and what it must come to: one small training, one small fusion."""

import hashlib
import tempfile
from pathlib import Path

from cluster.places import RegistryPlaces
from cluster.staging import neutral, stage_pictures
from cluster.trainer import TrainingRequest
from jobs.specs import ConceptSpec
from jobs.train_concept import publish_staged
from mos.artifact import artifact_bytes
from mos.base_model import BaseModel
from mos.concept import ConceptRef
from mos.fusion import FusionConfig, FusionExecutor, FusionSource, StageRule, fuse, write_fused
from mos.random_concept import random_concept
from mos.training import TrainingConfig, train_concept
from registry import Registry
from tests.mos.training.concepts import FAST, made_up_concept

OWNERS = {"alice": "robot", "bob": "cat"}
TRAINING = FAST.with_options(steps=12)
FUSION = FusionConfig(
    text_encoder=StageRule(steps=20, generic_weight=0.03, ridge=1e-3),
    cross_attention=StageRule(steps=20, generic_weight=0.03, ridge=1e-3),
    spatial=StageRule(steps=10, ridge=1e-3),
    generic_prompts=("", "a photo"),
    drift_prompts=("a boat",),
    latent_seeds=(0,),
    sampling_steps=2,
)


def concept_request(owner: str, url: str, config: TrainingConfig = TRAINING) -> TrainingRequest:
    """Stage an owner's pictures and ask for their training."""
    run_id = f"concept-{owner}"
    stage_pictures(RegistryPlaces(url)(run_id), made_up_concept(OWNERS[owner]))
    return TrainingRequest(
        run_id=run_id, ref=ConceptRef(owner, OWNERS[owner]), config=config, checkpoint_every=3, report_every=2
    )


def undisturbed_artifact(base: BaseModel, owner: str, config: TrainingConfig = TRAINING) -> bytes:
    """What the plain loop makes of an owner's concept."""
    return b"".join(artifact_bytes(train_concept(base, neutral(made_up_concept(OWNERS[owner])), config)))


def published_versions(url: str, home: Path) -> list[str]:
    """Publish the staged run of `concept-alice` twice, as two waiting commands would; the manifests it has then."""
    registry = Registry.open(url, create=True, home=home)
    spec = ConceptSpec(owner="alice", name=OWNERS["alice"], class_word="cat", pictures="staged")
    for _ in range(2):
        publish_staged("concept-alice", spec, registry, "0" * 64)
    folder = Path(url) / "users" / "alice" / "m" / OWNERS["alice"]
    return sorted(path.name for path in folder.iterdir())


def fusion_sources(base: BaseModel, *owners: str) -> list[FusionSource]:
    """Random concepts, equal wherever they are made."""
    names = owners or ("alice", "bob")
    return [random_concept(base, f"{owner}/thing", seed) for seed, owner in enumerate(names)]


def fused_sha256(base: BaseModel, sources: list[FusionSource], executor: FusionExecutor | None = None) -> str:
    """Digest of the weights of a fusion."""
    with tempfile.TemporaryDirectory() as folder:
        directory = write_fused(fuse(base, sources, FUSION, executor=executor), Path(folder) / "fused")
        return hashlib.sha256((directory / "fused.safetensors").read_bytes()).hexdigest()


def living() -> list[str]:
    """Names, or classes, of the living actors; asked of Ray's control store, which needs no dashboard."""
    from ray._private.state import actors

    return [actor["Name"] or actor["ActorClassName"] for actor in actors().values() if actor["State"] != "DEAD"]


def everything_is_back() -> bool:
    """Whether no actor lives and no CPU or GPU is taken."""
    import ray

    whole, free = ray.cluster_resources(), ray.available_resources()
    return not living() and all(free.get(name, 0.0) == whole.get(name, 0.0) for name in ("CPU", "GPU"))
