import pytest

from mos.artifact import artifact_bytes
from mos.errors import BadInputError
from mos.random_base import random_base
from mos.training import SlotSpec, Trainer
from tests.mos.training.concepts import FAST, made_up_concept


def spec(**options):
    return SlotSpec(key="cat", data=made_up_concept("cat"), config=FAST.with_options(steps=9, **options))


def run_to_end(trainer):
    losses = []
    while "cat" in trainer.keys:
        losses += [report.loss for report in trainer.step() if report.key == "cat"]
    return losses, b"".join(artifact_bytes(trainer.finish("cat")))


@pytest.mark.parametrize("options", [{}, {"layerwise": False, "num_words": 1, "rank": 0, "tuned": ()}])
def test_a_resumed_run_is_bit_equal_to_one_that_never_stopped(tiny_base, options):
    whole = Trainer(tiny_base)
    whole.admit(spec(**options))
    losses, expected = run_to_end(whole)
    first = Trainer(tiny_base)
    first.admit(spec(**options))
    for _ in range(4):
        first.step()
    state = first.slot_state_bytes("cat")
    first.step()  # work that is lost with the killed process
    second = Trainer(random_base())
    second.admit(spec(**options), state)
    resumed, found = run_to_end(second)
    assert resumed == losses[4:]
    assert found == expected


def test_saving_changes_nothing_and_is_deterministic(tiny_base):
    trainer = Trainer(tiny_base)
    trainer.admit(spec())
    trainer.step()
    assert trainer.slot_state_bytes("cat") == trainer.slot_state_bytes("cat")


@pytest.mark.parametrize("fault", ["pictures", "options", "base", "bytes", "cut"])
def test_a_checkpoint_of_something_else_is_refused(tiny_base, fault):
    trainer = Trainer(tiny_base)
    trainer.admit(spec())
    trainer.step()
    state = trainer.slot_state_bytes("cat")
    order, base = spec(), tiny_base
    if fault == "pictures":
        order = SlotSpec(key="cat", data=made_up_concept("cat", seed=9), config=order.config)
    elif fault == "options":
        order = spec(lr_unet=0.5)
    elif fault == "base":
        base = random_base(seed=3)
    else:
        state = b"no checkpoint" if fault == "bytes" else state[:-100]
    other = Trainer(base)
    with pytest.raises(BadInputError, match="checkpoint"):
        other.admit(order, state)
    assert other.keys == ()
    other.admit(spec())
    other.step()


def test_a_checkpoint_is_no_pickle(tiny_base):
    trainer = Trainer(tiny_base)
    trainer.admit(spec())
    state = trainer.slot_state_bytes("cat")
    length = int.from_bytes(state[:8], "little")
    assert state[8:9] == b"{"
    assert length < len(state)
