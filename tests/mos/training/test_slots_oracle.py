"""Many concepts in one step against each of them alone, in float64."""

import math

import pytest
import torch

from mos.concept import ConceptRef
from mos.edlora.adapter import applied
from mos.edlora.attention import layerwise_attention
from mos.edlora.tokens import PromptEncoder
from mos.facts import TUNABLE
from mos.random_base import random_base
from mos.training import SlotSpec, Trainer, TrainingError
from mos.training.batches import Batch
from mos.training.loop import MAX_BAD_STEPS
from mos.training.slots import RowSettings, SlotBank
from mos.training.step import slot_losses
from tests.mos.training.concepts import FAST, made_up_concept

TOLERANCE = 1e-8


@pytest.fixture(scope="module")
def base():
    """The tiny base in float64."""
    return random_base().to(dtype=torch.float64)


def order(name, *, seed=0, steps=50, **options):
    return SlotSpec(
        key=name,
        data=made_up_concept(name, seed=seed),
        config=FAST.with_options(seed=seed, steps=steps, noise_offset=0.02 * seed, **options),
    )


def parameters_of(trainer, key):
    """All parameters of one slot as one vector."""
    tensors = trainer._parameters.tensors(trainer.keys.index(key))
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def gradient_of(trainer, key):
    index = trainer.keys.index(key)
    return torch.cat([bank.gradient[index] for bank in trainer._parameters.banks.values()])


def run(base, *specs, steps):
    trainer = Trainer(base)
    for spec in specs:
        trainer.admit(spec)
    for _ in range(steps):
        trainer.step()
    return trainer


def relative(left, right):
    assert float(right.norm()) > 0
    return float((left - right).norm() / right.norm())


ORDERS = [
    order("a", seed=1, steps=60),
    order("b", seed=2, steps=80, lr_unet=3e-3),
    order("c", seed=3, steps=60, min_snr_gamma=5.0),
]


@pytest.mark.parametrize("regulariser", ["none", "outside", "full-identity"])
def test_gradients_of_every_slot_equal_training_alone(base, regulariser):
    specs = [
        SlotSpec(key=o.key, data=o.data, config=o.config.with_options(attention_regulariser=regulariser))
        for o in ORDERS
    ]
    together = run(base, *specs, steps=2)
    together.gradients()
    for spec in specs:
        alone = run(base, spec, steps=2)
        alone.gradients()
        assert relative(gradient_of(together, spec.key), gradient_of(alone, spec.key)) < TOLERANCE


def test_fifty_steps_of_every_slot_equal_training_alone(base):
    specs = [SlotSpec(key=o.key, data=o.data, config=o.config.with_options(batch_size=1)) for o in ORDERS]
    together = run(base, *specs, steps=50)
    for spec in specs:
        alone = run(base, spec, steps=50)
        assert relative(parameters_of(together, spec.key), parameters_of(alone, spec.key)) < TOLERANCE


def test_a_late_joiner_and_those_who_stay_end_as_if_alone(base):
    first, late, last = order("a", seed=1, steps=8), order("b", seed=2, steps=12), order("c", seed=3, steps=20)
    trainer = Trainer(base)
    trainer.admit(first)
    trainer.admit(last)
    for _ in range(5):
        trainer.step()
    trainer.admit(late)
    for _ in range(10):  # the first one leaves by itself after three of these
        trainer.step()
    assert trainer.keys == ("c", "b")
    for spec, steps in ((last, 15), (late, 10)):
        alone = run(base, spec, steps=steps)
        assert relative(parameters_of(trainer, spec.key), parameters_of(alone, spec.key)) < TOLERANCE
    done = trainer.finish("a")
    alone = Trainer(base)
    alone.admit(first)
    while alone.keys:
        alone.step()
    expected = alone.finish("a")
    for name, update in expected.linears["unet"].items():
        torch.testing.assert_close(done.linears["unet"][name].delta(), update.delta(), rtol=1e-6, atol=1e-9)


def test_one_owners_nan_never_touches_another(base):
    healthy, ill = order("a", seed=1), order("b", seed=2)
    trainer = Trainer(base)
    trainer.admit(ill)
    trainer.admit(healthy)
    trainer.step()
    trainer._slots[0].feed.moments.mean.fill_(math.nan)
    frozen = parameters_of(trainer, "b")
    failures = []
    for _ in range(MAX_BAD_STEPS):
        reports = {report.key: report for report in trainer.step()}
        assert math.isfinite(reports["a"].loss)
        assert math.isnan(reports["b"].loss)
        failures.append(reports["b"].failure)
        if "b" in trainer.keys:
            assert torch.equal(parameters_of(trainer, "b"), frozen)
    assert failures[-1].startswith("b: 10 steps in a row")
    assert not any(failures[:-1])
    assert trainer.keys == ("a",)
    alone = run(base, healthy, steps=1 + MAX_BAD_STEPS)
    assert relative(parameters_of(trainer, "a"), parameters_of(alone, "a")) < TOLERANCE
    with pytest.raises(TrainingError, match="finite gradient"):
        trainer.finish("b")


def test_the_norm_stop_freezes_one_slots_embeddings_and_only_those(base):
    stops, goes_on = order("a", seed=1, embedding_norm_stop=0.5), order("b", seed=2, embedding_norm_stop=50.0)
    trainer = run(base, stops, goes_on, steps=5)
    words = {key: trainer._parameters.banks["embedding"].values[index].clone() for index, key in enumerate("ab")}
    lora = trainer._parameters.banks["unet"].values.clone()
    (first, second) = trainer.step()
    assert (first.is_frozen, second.is_frozen) == (True, False)
    assert torch.equal(trainer._parameters.banks["embedding"].values[0], words["a"])
    assert not torch.equal(trainer._parameters.banks["embedding"].values[1], words["b"])
    assert not torch.equal(trainer._parameters.banks["unet"].values[0], lora[0])


def test_clipping_is_a_slots_own(base):
    clipped, free = order("a", seed=1, max_grad_norm=1e-3), order("b", seed=2)
    together, alone = run(base, clipped, free, steps=4), run(base, free, steps=4)
    assert relative(parameters_of(together, "b"), parameters_of(alone, "b")) < TOLERANCE
    together.step()
    assert float(gradient_of(together, "a").norm()) == pytest.approx(1e-3)


def test_accumulated_gradients_are_the_mean_of_their_micro_batches(base):
    spec = order("a", seed=1, accumulation=3)
    trainer = run(base, spec, steps=0)
    trainer.gradients()
    accumulated = gradient_of(trainer, "a").clone()
    single = run(base, order("a", seed=1), steps=0)
    parts = []
    for _ in range(3):
        single.gradients()
        parts.append(gradient_of(single, "a").clone())
    assert relative(accumulated, torch.stack(parts).mean(dim=0)) < TOLERANCE


def test_checkpointed_activations_give_the_same_gradients(base):
    plain, saving = order("a", seed=1), order("a", seed=1, gradient_checkpointing=True)
    gradients = []
    for spec in (plain, saving):
        trainer = run(base, spec, steps=2)
        trainer.gradients()
        gradients.append(gradient_of(trainer, "a").clone())
    assert relative(gradients[1], gradients[0]) < TOLERANCE


@pytest.mark.parametrize("tuned", [("text_encoder.attention", "unet.attention"), TUNABLE])
def test_the_step_equals_the_adapter_applied_to_the_weights(base, tuned):
    """The slotted forward pass and sampling's way of using a concept must be one function, wherever LoRA is put."""
    orders = [SlotSpec(key=o.key, data=o.data, config=o.config.with_options(tuned=tuned)) for o in ORDERS[:2]]
    trainer = run(base, *orders, steps=3)
    slots = trainer._slots
    batches: list[Batch] = [slot.feed.draw() for slot in slots]
    parameters = trainer._parameters
    with torch.no_grad(), slot_losses(base, parameters, batches, [slot.spec.config for slot in slots]) as losses:
        found = losses.tolist()
    for index, slot in enumerate(slots):
        adapter = trainer.snapshot(slot.spec.key).adapter(ConceptRef.parse("test/concept"))
        single = Trainer(base)
        single.admit(SlotSpec(key="x", data=slot.spec.data, config=slot.spec.config))
        with applied(base, adapter), layerwise_attention(base.unet), torch.no_grad():
            expected = plain_loss(base, adapter, batches[index], slot.spec)
        assert found[index] == pytest.approx(expected, rel=1e-5)


def plain_loss(base, adapter, batch, spec):
    """The loss written out, with weights and prompts as sampling has them."""
    encoder = PromptEncoder(base, adapter.vocabulary)
    vocabulary = base.tokenizer.get_vocab()
    texts = {token: text for text, token in vocabulary.items()}
    prompts = []
    for row in batch.token_ids["text_encoder"].tolist():
        words = [
            "<test-concept>" if token == 620 else texts[token].replace("</w>", " ")
            for token in row
            if token not in (618, 619, 621)
        ]
        prompts.append("".join(words).replace("Ġ", ""))
    context = encoder.encode(prompts).context
    alphas = base.scheduler.alphas_cumprod.double()[batch.timesteps].view(-1, 1, 1, 1)
    noisy = alphas.sqrt() * batch.latents + (1 - alphas).sqrt() * batch.noise
    prediction = base.unet(noisy, batch.timesteps, context).sample
    error = ((prediction - batch.noise) ** 2 * batch.weight).sum(dim=(1, 2, 3)) / batch.weight.sum(dim=(1, 2, 3))
    return float(error.mean())


def test_the_bank_steps_like_torchs_adamw():
    generator = torch.Generator().manual_seed(0)
    bank = SlotBank({"x": (3, 2), "y": (4,)}, torch.device("cpu"), torch.float64)
    starts = [torch.randn(10, generator=generator, dtype=torch.float64) for _ in range(3)]
    for start in starts:
        bank.append(start)
    plain = [torch.nn.Parameter(start.clone()) for start in starts]
    optimizers = [
        torch.optim.AdamW([parameter], lr=0.1 * (index + 1), betas=(0.8, 0.99), weight_decay=0.02)
        for index, parameter in enumerate(plain)
    ]
    counts = [0, 0, 0]
    for step in range(20):
        active = [index for index in range(3) if (step + index) % 3]
        bank.gradient.copy_(torch.randn(3, 10, generator=generator, dtype=torch.float64))
        rows = {}
        for index in active:
            counts[index] += 1
            rows[index] = RowSettings(
                lr=0.1 * (index + 1), step=counts[index], betas=(0.8, 0.99), epsilon=1e-8, weight_decay=0.02
            )
            plain[index].grad = bank.gradient[index].clone()
            optimizers[index].step()
        bank.update(rows)
    torch.testing.assert_close(bank.values, torch.stack([parameter.data for parameter in plain]), rtol=1e-12, atol=0)


def test_only_word_rows_and_lora_factors_are_parameters(base):
    trainer = run(base, ORDERS[0], steps=0)
    names = {name.split(":")[0] for bank in trainer._parameters.banks.values() for name in bank.leaves}
    assert names == {"embedding", "text_encoder", "unet"}
    assert trainer._parameters.banks["embedding"].width == 2 * 4 * 16
    count = sum(bank.width for bank in trainer._parameters.banks.values())
    shapes = base.facts.linear_shapes
    expected = sum(
        4 * (shapes[component][name][1]) + 4 * shapes[component][name][0]
        for component, names in base.facts.attention_linears.items()
        for name in names
    )
    packed = count - 2 * 4 * 16
    assert packed == expected
