import pytest
import torch

from mos.layers import (
    attention_linears,
    attention_names,
    canonical_name,
    cross_attention_names,
    input_sites,
    linear_module,
)
from mos.random_base import random_base


def forward_order(base) -> list[str]:
    """The cross-attention modules in the order in which the U-Net really runs them."""
    order: list[str] = []
    hooks = [
        base.unet.get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name))
        for name in cross_attention_names(base.unet)
    ]
    base.unet(
        torch.zeros(1, 4, 8, 8), 0, torch.zeros(1, 3, base.unet.config.cross_attention_dim),
        added_cond_kwargs={"text_embeds": torch.zeros(1, 32), "time_ids": torch.zeros(1, 6)},
    )  # fmt: skip
    for hook in hooks:
        hook.remove()
    return order


@pytest.mark.parametrize(("family", "count"), [("sd1", 4), ("sd2", 4), ("sdxl", 5)])
def test_layer_order_is_the_order_in_which_the_unet_runs(family, count):
    base = random_base(family)
    names = cross_attention_names(base.unet)
    assert len(names) == count
    assert list(names) == forward_order(base)
    assert [name.split("_")[0] for name in names] == sorted(
        (name.split("_")[0] for name in names), key=["down", "mid", "up"].index
    )


def test_every_attention_linear_is_listed_once_and_exists(tiny_base):
    names = attention_linears(tiny_base.unet)
    found = {
        name
        for name, module in tiny_base.unet.named_modules()
        if isinstance(module, torch.nn.Linear) and ".attn" in name
    }
    assert set(names) == found
    assert len(names) == len(found) == 4 * len(attention_names(tiny_base.unet))


def test_options_add_feed_forward_and_projections(tiny_base):
    plain = set(attention_linears(tiny_base.unet))
    wide = attention_linears(tiny_base.unet, feed_forward=True, projections=True)
    extra = set(wide) - plain
    assert len(extra) == 4 * (2 + 2)
    assert all(linear_module(tiny_base.unet, name).weight.ndim in (2, 4) for name in wide)
    assert "encoder.layers.0.mlp.fc1" in attention_linears(tiny_base.text_encoder, feed_forward=True)


def test_text_names_carry_no_prefix_in_any_encoder():
    base = random_base("sdxl")
    for encoder in base.text_encoders.values():
        for name in attention_linears(encoder):
            assert not name.startswith("text_model.")
            assert isinstance(linear_module(encoder, name), torch.nn.Linear)
    assert canonical_name("text_model.encoder.x") == "encoder.x"


def test_sites_group_layers_that_share_an_input(tiny_base):
    names = attention_linears(tiny_base.unet)
    sites = input_sites(tiny_base.unet, names)
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        linear_module(tiny_base.unet, name).register_forward_hook(
            lambda _m, args, _o, name=name: seen.__setitem__(name, args[0])
        )
        for name in names
    ]
    tiny_base.unet(torch.randn(1, 4, 8, 8), 3, torch.randn(1, 5, 16))
    for hook in hooks:
        hook.remove()
    assert sorted(name for members in sites.values() for name in members) == sorted(names)
    for members in sites.values():
        assert all(seen[member] is seen[members[0]] for member in members)
    assert len(sites) == len({id(value) for value in seen.values()}) + 3  # the prompt is shared by 4 kv sites


def test_an_unknown_layer_is_a_key_error(tiny_base):
    with pytest.raises(KeyError, match="nowhere"):
        linear_module(tiny_base.unet, "nowhere")
