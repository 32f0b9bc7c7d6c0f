"""Concepts with random weights, for tests of formats."""

import torch

from mos.artifact import ArtifactCard, EDLoRA
from mos.base_model import BaseModel
from mos.edlora.lora import LowRank
from mos.facts import tuned_linears

ATTENTION = ("text_encoder.attention", "unet.attention")
EVERYTHING = (
    "text_encoder.attention",
    "text_encoder.feed_forward",
    "unet.attention",
    "unet.feed_forward",
    "unet.projections",
)


def random_concept(
    base: BaseModel, *, tuned: tuple[str, ...] = ATTENTION, rank: int = 2, seed: int = 0, layered: bool = True
) -> EDLoRA:
    """A concept whose updates and words are random; all layers share a word's row unless ``layered``."""
    generator = torch.Generator().manual_seed(seed)
    facts = base.facts

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    linears = {
        component: {
            layer: LowRank(
                up=normal(facts.linear_shapes[component][layer][0], rank) * 0.05,
                down=normal(rank, facts.linear_shapes[component][layer][1]) * 0.5,
            )
            for layer in layers
        }
        for component, layers in tuned_linears(facts, tuned).items()
    }
    layers = facts.num_cross_attention_layers
    embeddings = {
        encoder.name: (normal(2, layers, encoder.hidden_dim) if layered else normal(2, 1, encoder.hidden_dim))
        .mul(0.05)
        .expand(2, layers, encoder.hidden_dim)
        .contiguous()
        for encoder in facts.encoders
    }
    card = ArtifactCard(
        words=("<tom-rand>", "<tom-class>"),
        class_word="cat",
        kind="pet",
        base_name=facts.name,
        family=facts.family,
        base_fingerprint=dict(facts.fingerprint),
        rank=rank if tuned else 0,
        tuned=tuned,
        seed=7,
        recipe={"steps": "500", "lr_unet": "0.0001"},
        title="Tom the cat",
    )
    return EDLoRA(card=card, linears=linears, embeddings=embeddings)


def assert_same_concept(found: EDLoRA, expected: EDLoRA, *, words: bool = True) -> None:
    """Every tensor bit-equal."""
    assert found.linears.keys() == expected.linears.keys()
    count = 0
    for component, updates in expected.linears.items():
        assert found.linears[component].keys() == updates.keys()
        for layer, update in updates.items():
            assert torch.equal(found.linears[component][layer].up, update.up), layer
            assert torch.equal(found.linears[component][layer].down, update.down), layer
            count += 1
    assert count > 0 or not expected.linears
    if words:
        for encoder, rows in expected.embeddings.items():
            assert torch.equal(found.embeddings[encoder], rows)
