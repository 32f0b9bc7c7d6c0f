import math

import pytest

from mos.artifact import artifact_bytes
from mos.errors import BadInputError, ConflictError
from mos.training import SlotSpec, Trainer, TrainingConfig, TrainingError
from mos.training.contest import ContestTrainer, train_seeds
from mos.training.judging import embedding_share
from tests.mos.training.concepts import FAST, made_up_concept


def order(key="cat", **options):
    return SlotSpec(key=key, data=made_up_concept(key), config=FAST.with_options(**{"steps": 6, "seed": 4} | options))


def run_to_end(trainer, key="cat"):
    reports = []
    while key in trainer.keys:
        reports += [report for report in trainer.step() if report.key == key]
    return reports


def content(edlora):
    return b"".join(artifact_bytes(edlora))


def test_several_seeds_are_trained_together_and_the_best_words_come_first(tiny_base):
    data, reports = made_up_concept("cat"), []
    results = train_seeds(tiny_base, data, order().config, 3, on_step=reports.append)
    assert sorted(result.seed for result in results) == [4, 5, 6]
    losses = [result.share.embedding for result in results]
    assert losses == sorted(losses)
    assert len(set(losses)) == 3
    assert [report.step for report in reports] == list(range(1, 7))
    again = embedding_share(tiny_base, data, results[0].edlora)
    assert again == results[0].share
    assert results[0].share.full < results[0].share.plain


def test_seeds_out_of_range_and_a_hopeless_run_are_refused(tiny_base):
    with pytest.raises(BadInputError, match="expected 1 to 16"):
        train_seeds(tiny_base, made_up_concept("cat"), FAST, 0)
    wild = TrainingConfig(steps=40, lr_embedding=1.0, lr_unet=1.0, lr_text_encoder=1.0, embedding_norm_stop=1e30,
                          initializer_sigma=1e30)  # fmt: skip
    with pytest.raises(TrainingError, match="none of 1 seeds"):
        train_seeds(tiny_base, made_up_concept("cat"), wild, 1)


def test_one_seed_is_a_plain_training_byte_for_byte(tiny_base):
    plain, contest = Trainer(tiny_base), ContestTrainer(tiny_base)
    plain.admit(order())
    contest.admit(order())
    for _ in range(3):
        expected, (found,) = plain.step(), contest.step()
        assert [found] == expected
    assert contest.slot_state_bytes("cat") == plain.slot_state_bytes("cat")
    run_to_end(plain)
    run_to_end(contest)
    assert content(contest.finish("cat")) == content(plain.finish("cat"))


def test_a_resumed_contest_is_bit_equal_to_one_that_never_stopped(tiny_base):
    whole, first, second = (ContestTrainer(tiny_base) for _ in range(3))
    for trainer in (whole, first):
        trainer.admit(order(), num_seeds=2)
    losses = [report.loss for report in run_to_end(whole)]
    for _ in range(2):
        first.step()
    second.admit(order(), first.slot_state_bytes("cat"), num_seeds=2)
    assert [report.loss for report in run_to_end(second)] == losses[2:]
    expected, found = whole.results("cat"), second.results("cat")
    assert [result.seed for result in found] == [result.seed for result in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert content(ours.edlora) == content(theirs.edlora)


def test_a_seed_that_fails_leaves_the_others_to_win(tiny_base):
    trainer = ContestTrainer(tiny_base)
    trainer.admit(order(steps=14), num_seeds=2)
    trainer._trainer._slots[0].feed.moments.mean.fill_(math.nan)
    reports = run_to_end(trainer)
    assert all(math.isfinite(report.loss) and not report.failure for report in reports)
    assert len(reports) == 14
    assert [result.seed for result in trainer.results("cat")] == [5]


def test_when_every_seed_fails_the_concept_fails(tiny_base):
    trainer = ContestTrainer(tiny_base)
    trainer.admit(order(steps=14), num_seeds=2)
    for slot in trainer._trainer._slots:
        slot.feed.moments.mean.fill_(math.nan)
    reports = run_to_end(trainer)
    assert "10 steps in a row" in reports[-1].failure
    with pytest.raises(TrainingError, match="none of 2 seeds"):
        trainer.finish("cat")


@pytest.mark.parametrize("fault", ["one seed's", "other seeds'", "bytes", "cut"])
def test_a_checkpoint_of_another_contest_is_refused_and_leaves_nothing(tiny_base, fault):
    first, second = ContestTrainer(tiny_base), ContestTrainer(tiny_base)
    first.admit(order(), num_seeds=1 if fault == "one seed's" else 2)
    state = first.slot_state_bytes("cat")
    start = 9 if fault == "other seeds'" else 4
    state = {"bytes": b"no checkpoint", "cut": state[:-100]}.get(fault, state)
    with pytest.raises(BadInputError, match="checkpoint"):
        second.admit(order(seed=start), state, num_seeds=2)
    assert second.keys == ()
    second.admit(order(), num_seeds=2)
    second.step()


def test_concepts_come_and_go_beside_a_contest(tiny_base):
    trainer = ContestTrainer(tiny_base)
    trainer.admit(order("cat"), num_seeds=2)
    trainer.step()
    trainer.admit(order("dog", steps=9))
    assert trainer.keys == ("cat", "dog")
    with pytest.raises(ConflictError, match="already"):
        trainer.admit(order("dog"))
    assert [report.key for report in trainer.step()] == ["cat", "dog"]
    assert content(trainer.snapshot("cat"))
    trainer.remove("cat")
    assert trainer.keys == ("dog",)
    with pytest.raises(ConflictError, match="not in this trainer"):
        trainer.finish("cat")
    run_to_end(trainer, "dog")
    assert content(trainer.finish("dog"))
