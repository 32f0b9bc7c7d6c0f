import math

import pytest
import torch

from mos.artifact import read_artifact, write_artifact
from mos.errors import BadInputError, ConflictError
from mos.random_base import random_base
from mos.training import PRESETS, SlotSpec, Trainer, train_concept
from mos.training.loop import TrainingStoppedError, learning_rate
from tests.mos.training.concepts import FAST, made_up_concept


@pytest.fixture(scope="module")
def exact_base():
    """The tiny base in float64, for oracles."""
    return random_base().to(dtype=torch.float64)


def spec(name, *, seed=0, **options):
    return SlotSpec(key=name, data=made_up_concept(name, seed=seed), config=FAST.with_options(seed=seed, **options))


def vector(trainer, key):
    """All parameters of one slot as one float64 vector."""
    index = trainer.keys.index(key)
    tensors = trainer._parameters.tensors(index)
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def gradient(trainer, key):
    index = trainer.keys.index(key)
    return torch.cat([bank.gradient[index] for bank in trainer._parameters.banks.values()])


def relative(left, right):
    return float((left - right).norm() / right.norm())


@pytest.mark.parametrize("preset", ["paper", "lora", "textual-inversion", "p-plus"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_preset_trains_on_every_family_and_its_artifact_fits(tmp_path, preset, family):
    base = random_base(family)
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    reports = []
    edlora = train_concept(base, made_up_concept("cat"), PRESETS[preset].with_options(steps=2), on_step=reports.append)
    write_artifact(edlora, tmp_path / "a.safetensors")
    read_artifact(tmp_path / "a.safetensors", base.facts)
    assert [report.step for report in reports] == [1, 2]
    assert reports[-1].is_done
    assert math.isfinite(reports[-1].loss)
    assert all(torch.equal(before[name], value) for name, value in base.unet.state_dict().items())
    assert not any(module._forward_hooks for module in base.unet.modules())


def test_an_unknown_class_word_is_one_clear_line(tiny_base):
    data = made_up_concept("cat")
    wrong = type(data)(name="cat", class_word="zebra", kind="pet", pictures=data.pictures)
    with pytest.raises(BadInputError, match="single token"):
        train_concept(tiny_base, wrong, FAST)


def test_the_learning_rate_falls_linearly_to_nothing():
    config = FAST.with_options(steps=10, warmup_steps=2, lr_unet=1.0)
    rates = [learning_rate(config, "unet", step) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert rates[10] == 0


def test_training_can_be_stopped(tiny_base):
    with pytest.raises(TrainingStoppedError, match="stopped"):
        train_concept(tiny_base, made_up_concept("cat"), FAST, should_stop=lambda: True)


def test_slots_with_other_shapes_are_refused(tiny_base):
    trainer = Trainer(tiny_base)
    trainer.admit(spec("a"))
    with pytest.raises(ConflictError, match="rank"):
        trainer.admit(spec("b", rank=2))
    with pytest.raises(ConflictError, match="already"):
        trainer.admit(spec("a"))
    with pytest.raises(ConflictError, match="not in this trainer"):
        trainer.snapshot("c")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_as_full_does_and_keeps_its_parameters_in_float32(tiny_base, precision):
    losses = {}
    for used in ("fp32", precision):
        reports = []
        config = FAST.with_options(steps=4, precision=used)
        edlora = train_concept(tiny_base, made_up_concept("cat"), config, on_step=reports.append)
        losses[used] = [report.loss for report in reports]
        assert all(update.up.dtype == torch.float32 for update in edlora.linears["unet"].values())
        assert any(bool(update.up.any()) for update in edlora.linears["unet"].values())
    assert losses[precision] != losses["fp32"]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.02)


def test_an_overflow_in_fp16_halves_the_loss_scale_and_is_no_fault(tiny_base):
    trainer = Trainer(tiny_base)
    trainer.admit(spec("cat", precision="fp16"))
    (slot,) = trainer._slots
    slot.loss_scale = 2.0**120
    before = vector(trainer, "cat")
    (report,) = trainer.step()
    assert math.isnan(report.loss)
    assert (slot.loss_scale, slot.bad_steps) == (2.0**119, 0)
    assert torch.equal(vector(trainer, "cat"), before)
    slot.loss_scale = 2.0**12
    (report,) = trainer.step()
    assert math.isfinite(report.loss)
    assert not torch.equal(vector(trainer, "cat"), before)
