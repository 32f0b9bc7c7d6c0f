"""Random artifacts for tests."""

from mos.artifact import ArtifactCard, EDLoRA
from mos.base_model import BaseModel
from tests.mos.adapters import random_adapter


def random_edlora(base: BaseModel, *, name: str = "cat", rank: int = 2, seed: int = 0) -> EDLoRA:
    """An ED-LoRA that tunes every attention linear of the base."""
    adapter = random_adapter(base, f"<test-{name}>", rank=rank, seed=seed)
    card = ArtifactCard(
        words=(f"<{name}-rand>", f"<{name}-class>"),
        class_word="cat",
        kind="pet",
        base_name=base.facts.name,
        family=base.facts.family,
        base_fingerprint=base.facts.fingerprint,
        rank=rank,
        tuned=("text_encoder.attention", "unet.attention"),
        seed=seed,
        recipe={"steps": "3"},
        title=f"a {name}",
    )
    return EDLoRA(card=card, linears=adapter.linears, embeddings=adapter.vocabulary[0].embeddings)
