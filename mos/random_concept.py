"""A concept with random updates on any base, for tests and benchmarks: real shapes, no training."""

import torch

from mos.artifact import ArtifactCard, EDLoRA
from mos.base_model import BaseModel
from mos.concept import ConceptRef
from mos.edlora.lora import LowRank
from mos.facts import BaseFacts
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
    """Draw a concept whose every update has `strength` times the Frobenius norm of the base's layer.

    Args:
        base: The base it fits.
        ref: Its reference, such as "alice/robot@1".
        seed: Of its weights.
        rank: Of its updates.
        components: Those tuned, of which the base may lack some.
        strength: Norm of an update relative to the layer it is added to.
        with_embeddings: Whether it brings words (with the base's mean token norm) or updates alone.
    """
    facts, parsed = base.facts, ConceptRef.parse(ref)
    generator = torch.Generator().manual_seed(seed)
    linears = {
        component: {
            name: _random_update(facts, component, name, rank, strength, generator)
            for name in facts.attention_linears[component]
        }
        for component in components
        if component in facts.linear_shapes
    }
    embeddings = _random_embeddings(facts, generator) if with_embeddings else {}
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
    return FusionSource(ref=parsed, edlora=EDLoRA(card=card, linears=linears, embeddings=embeddings))


def _random_update(
    facts: BaseFacts, component: str, name: str, rank: int, strength: float, generator: torch.Generator
) -> LowRank:
    out, into = facts.linear_shapes[component][name]
    update = LowRank(up=torch.randn(out, rank, generator=generator), down=torch.randn(rank, into, generator=generator))
    return update.scaled(strength * facts.linear_norms[component][name] / update.norm())


def _random_embeddings(facts: BaseFacts, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        encoder.name: torch.randn(2, facts.num_cross_attention_layers, encoder.hidden_dim, generator=generator)
        * encoder.mean_embedding_norm
        / encoder.hidden_dim**0.5
        for encoder in facts.encoders
    }
