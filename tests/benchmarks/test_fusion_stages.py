"""One stage of a fused model given back to a concept: exactly that stage's layers, and nothing else."""

import pytest
import torch

from benchmarks.fusion_stages import with_own
from mos.edlora.adapter import Adapter
from mos.edlora.lora import LowRank
from mos.fusion.config import StageName
from mos.fusion.stages import Stage

STAGE = Stage(name=StageName.CROSS_ATTENTION, sites={"unet": {"block.kv": ("block.to_k", "block.to_v")}})


def update(seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(up=torch.randn(4, 2, generator=generator), down=torch.randn(2, 3, generator=generator))


@pytest.fixture
def fused() -> Adapter:
    layers = {"unet": {"block.to_k": update(1), "block.to_v": update(2), "block.to_q": update(3)}}
    return Adapter(linears={"text_encoder": {"q": update(4)}, **layers}, vocabulary=())


def test_the_stages_layers_are_the_concepts_and_all_others_stay_fused(fused):
    own = Adapter(linears={"unet": {"block.to_k": update(5), "block.to_q": update(6)}}, vocabulary=())
    mixed = with_own(fused, own, STAGE)
    assert mixed.linears["unet"]["block.to_k"] is own.linears["unet"]["block.to_k"]
    assert mixed.linears["unet"]["block.to_q"] is fused.linears["unet"]["block.to_q"]
    assert mixed.linears["text_encoder"] == fused.linears["text_encoder"]
    assert "block.to_v" not in mixed.linears["unet"], "the concept leaves this layer as the base has it"
    assert set(fused.linears["unet"]) == {"block.to_k", "block.to_v", "block.to_q"}, "the fused model is untouched"
