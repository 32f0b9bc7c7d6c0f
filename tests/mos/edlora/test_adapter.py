import pytest
import torch

from mos.edlora.adapter import applied
from mos.edlora.lora import LowRank
from mos.errors import BadInputError
from mos.layers import linear_weight
from tests.mos.adapters import random_adapter, random_words


def snapshot(base):
    return {name: value.clone() for name, value in base.unet.state_dict().items()} | {
        "te." + name: value.clone() for name, value in base.text_encoder.state_dict().items()
    }


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_inside_weights_are_base_plus_scaled_delta_and_outside_bit_equal(tiny_base):
    before = snapshot(tiny_base)
    adapter = random_adapter(tiny_base, "<a-cat>")
    with applied(tiny_base, adapter, scale={"unet": 0.5, "text_encoder": 2.0}):
        for component, factor in (("unet", 0.5), ("text_encoder", 2.0)):
            prefix = "te." if component == "text_encoder" else ""
            for name, update in adapter.linears[component].items():
                weight = linear_weight(tiny_base.component(component), name)
                expected = before[f"{prefix}{name}.weight"] + factor * update.up @ update.down
                torch.testing.assert_close(weight, expected)
    assert same(before, snapshot(tiny_base))


def test_the_base_is_restored_after_an_exception_and_when_nested(tiny_base):
    before = snapshot(tiny_base)
    first, second = random_adapter(tiny_base, seed=1), random_adapter(tiny_base, seed=2)
    with pytest.raises(ZeroDivisionError), applied(tiny_base, first), applied(tiny_base, second):
        _ = 1 / 0
    assert same(before, snapshot(tiny_base))
    with applied(tiny_base, first):
        outer = snapshot(tiny_base)
        with applied(tiny_base, second):
            assert not same(outer, snapshot(tiny_base))
        assert same(outer, snapshot(tiny_base))
    assert same(before, snapshot(tiny_base))


def test_a_convolution_can_be_tuned(tiny_base):
    name = "down_blocks.0.attentions.0.proj_in"
    out, into = tiny_base.facts.linear_shapes["unet"][name]
    update = LowRank(up=torch.randn(out, 2), down=torch.randn(2, into))
    adapter = type(random_adapter(tiny_base))(linears={"unet": {name: update}}, vocabulary=())
    plain = linear_weight(tiny_base.unet, name).clone()
    with applied(tiny_base, adapter):
        torch.testing.assert_close(linear_weight(tiny_base.unet, name), plain + update.delta())


@pytest.mark.parametrize("fault", ["component", "layer", "shape", "words"])
def test_an_adapter_that_does_not_fit_is_refused_before_anything_changes(tiny_base, fault):
    before = snapshot(tiny_base)
    adapter = random_adapter(tiny_base)
    update = LowRank(up=torch.ones(16, 1), down=torch.ones(1, 16))
    linears = {
        "component": {"text_encoder_2": {"encoder.layers.0.self_attn.q_proj": update}},
        "layer": {"unet": {**adapter.linears["unet"], "down_blocks.9.to_q": update}},
        "shape": {"unet": {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": update.scaled(1)}},
        "words": {},
    }[fault]
    if fault == "shape":
        linears["unet"]["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"] = LowRank(
            up=torch.ones(3, 1), down=torch.ones(1, 16)
        )
    words = random_words(tiny_base, "<a-cat>")
    if fault == "words":
        words.embeddings["text_encoder"] = torch.zeros(2, 1, 16)
    wrong = type(adapter)(linears=linears, vocabulary=(words,))
    with pytest.raises(BadInputError), applied(tiny_base, wrong):
        pass
    assert same(before, snapshot(tiny_base))


def test_the_norm_of_an_update_needs_no_product():
    update = LowRank(up=torch.randn(7, 3), down=torch.randn(3, 5))
    assert update.norm() == pytest.approx(float(update.delta().norm()), rel=1e-5)
    assert update.scaled(2).norm() == pytest.approx(2 * update.norm())


def test_factors_that_do_not_multiply_are_refused():
    with pytest.raises(ValueError, match="do not multiply"):
        LowRank(up=torch.ones(2, 3), down=torch.ones(2, 3))
