"""Compiled blocks: the same training, or a refusal in one line."""

import pytest
import torch

from mos.errors import BadInputError
from mos.training import SlotSpec, Trainer
from tests.mos.training.concepts import FAST, made_up_concept


def trainer_of(base, *names, **options):
    trainer = Trainer(base)
    for seed, name in enumerate(names):
        config = FAST.with_options(steps=4, batch_size=1, seed=seed, **options)
        trainer.admit(SlotSpec(key=name, data=made_up_concept(name, seed=seed), config=config))
    return trainer


def gradients(trainer):
    trainer.gradients()
    return torch.cat([bank.gradient for bank in trainer._parameters.banks.values()], dim=1)


def test_without_a_working_compiler_it_is_refused_in_one_line(tiny_base, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler")), "fx_graph_cache": False}),
        pytest.raises(BadInputError, match="cannot compile on this machine") as caught,
    ):
        trainer_of(tiny_base, "cat", compile=True)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own, while it traces
def test_compiled_blocks_give_the_same_gradients_and_leave_no_trace(tiny_base):
    before = dict(tiny_base.unet.state_dict())
    plain, compiled = trainer_of(tiny_base, "cat"), trainer_of(tiny_base, "cat", compile=True)
    assert len(compiled._parameters._blocks) > 4
    for _ in range(2):
        torch.testing.assert_close(gradients(compiled), gradients(plain), rtol=1e-4, atol=1e-6)
        plain.step()
        compiled.step()
    two, two_compiled = trainer_of(tiny_base, "cat", "dog"), trainer_of(tiny_base, "cat", "dog", compile=True)
    torch.testing.assert_close(gradients(two_compiled), gradients(two), rtol=1e-4, atol=1e-6)
    assert not any("forward" in vars(module) for module in tiny_base.unet.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_base.unet.state_dict().items())


@pytest.mark.slow
def test_blocks_that_hold_a_tuned_layer_are_left_alone(tiny_base):
    attention = trainer_of(tiny_base, "cat", compile=True)._parameters._blocks
    groups = ("text_encoder.attention", "unet.attention", "unet.feed_forward")
    everything = trainer_of(tiny_base, "cat", compile=True, tuned=groups)._parameters._blocks
    assert 0 < len(everything) < len(attention)
