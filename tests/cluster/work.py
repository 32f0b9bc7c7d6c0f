"""The work that fault tests disturb, and what it must come to: one small training, one small fusion."""

import hashlib
import tempfile
from pathlib import Path

from cluster.places import RegistryPlaces
from cluster.staging import neutral, stage_pictures
from cluster.trainer import TrainingRequest
from mos.artifact import artifact_bytes
from mos.base_model import BaseModel
from mos.concept import ConceptRef
from mos.fusion import FusionConfig, FusionExecutor, FusionSource, StageRule, fuse, write_fused
from mos.random_concept import random_concept
from mos.training import TrainingConfig, train_concept
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
    """Whether no actor lives and no CPU is taken."""
    import ray

    return not living() and ray.available_resources().get("CPU", 0.0) == ray.cluster_resources()["CPU"]
