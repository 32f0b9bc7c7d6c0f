"""Concepts with random updates on any base, for tests and benchmarks of fusion: real shapes, no training."""

import torch

from mos.artifact import ArtifactCard, EDLoRA
from mos.base_model import BaseModel
from mos.concept import ConceptRef
from mos.edlora.lora import LowRank
from mos.fusion.source import FusionSource


def random_concept(
    base: BaseModel,
    ref: str,
    seed: int,
    *,
    rank: int = 2,
    components: tuple[str, ...] = ("text_encoder", "text_encoder_2", "unet"),
    strength: float = 0.1,
    with_embeddings: bool = True,
) -> FusionSource:
    """A concept whose updates have `strength` times the norm of the base's layers."""
    generator = torch.Generator().manual_seed(seed)
    facts = base.facts
    linears: dict[str, dict[str, LowRank]] = {}
    for component in (name for name in components if name in facts.linear_shapes):
        for name in facts.attention_linears[component]:
            out, into = facts.linear_shapes[component][name]
            update = LowRank(
                up=torch.randn(out, rank, generator=generator), down=torch.randn(rank, into, generator=generator)
            )
            factor = strength * facts.linear_norms[component][name] / update.norm()
            linears.setdefault(component, {})[name] = update.scaled(factor)
    embeddings = {
        encoder.name: torch.randn(2, facts.num_cross_attention_layers, encoder.hidden_dim, generator=generator)
        * encoder.mean_embedding_norm
        / encoder.hidden_dim**0.5
        for encoder in facts.encoders
    }
    parsed = ConceptRef.parse(ref)
    card = ArtifactCard(
        words=parsed.words,
        class_word="cat",
        kind="object",
        base_name=facts.name,
        family=facts.family,
        base_fingerprint=facts.fingerprint,
        rank=rank,
        tuned=tuple(f"{kind}.attention" for kind in ("text_encoder", "unet") if kind in components),
        seed=seed,
    )
    return FusionSource(
        ref=parsed, edlora=EDLoRA(card=card, linears=linears, embeddings=embeddings if with_embeddings else {})
    )
