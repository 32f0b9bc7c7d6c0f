import pytest
import torch

from benchmarks.fusion_cost import peak_mb, reset_peak
from mos.artifact import read_artifact, write_artifact
from mos.random_base import random_base
from mos.training import PRESETS, SlotSpec, Trainer
from tests.mos.training.concepts import made_up_concept

MOST_MB = 8_000
"""Of the whole: 4.3 GB of float32 weights, the cached moments' encoding, and one step of one picture."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_full_size_shapes_train_one_step_save_and_read_back(tmp_path):
    """Stable Diffusion 1.5's real shapes with random weights: 176 updates, 1,116,672 parameters."""
    before = reset_peak()
    base = random_base(size="full")
    config = PRESETS["paper"].with_options(batch_size=1, steps=1, gradient_checkpointing=True)
    trainer = Trainer(base)
    trainer.admit(SlotSpec(key="cat", data=made_up_concept("cat", size=(512, 512)), config=config))
    assert sum(bank.width for bank in trainer._parameters.banks.values()) == 1_116_672
    (report,) = trainer.step()
    assert report.is_done
    assert report.gradient_norm > 0
    edlora = trainer.finish("cat")
    assert sum(map(len, edlora.linears.values())) == 176
    write_artifact(edlora, tmp_path / "cat.safetensors")
    assert (tmp_path / "cat.safetensors").stat().st_size < 5 << 20
    loaded = read_artifact(tmp_path / "cat.safetensors", base.facts)
    for name, update in edlora.linears["unet"].items():
        assert torch.equal(loaded.linears["unet"][name].up, update.up)
    assert loaded.embeddings["text_encoder"].shape == (2, 16, 768)
    if before is not None:
        peak = peak_mb() - before
        print(f"peak {peak:.0f} MB")
        assert peak < MOST_MB
