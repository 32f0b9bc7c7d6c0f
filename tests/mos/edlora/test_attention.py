import pytest
import torch
import torch.nn.functional as F

from mos.edlora.attention import attend, layerwise_attention
from mos.layers import cross_attention_names
from mos.random_base import random_base


def run(unet, context, seed=0):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return unet(latents, 5, context).sample


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_one_encoding_for_all_layers_equals_the_plain_unet(family):
    base = random_base(family)
    context = torch.randn(2, 7, 16)
    expected = run(base.unet, context)
    with layerwise_attention(base.unet):
        torch.testing.assert_close(run(base.unet, context), expected)
        torch.testing.assert_close(run(base.unet, context[:, None].expand(-1, 4, -1, -1)), expected)


def test_layer_i_reads_slice_i(tiny_base):
    context = torch.randn(2, 4, 7, 16)
    seen = {}
    names = cross_attention_names(tiny_base.unet)
    hooks = [
        tiny_base.unet.get_submodule(name).to_k.register_forward_hook(
            lambda _m, args, _o, name=name: seen.__setitem__(name, args[0])
        )
        for name in names
    ]
    with layerwise_attention(tiny_base.unet):
        run(tiny_base.unet, context)
    for hook in hooks:
        hook.remove()
    for index, name in enumerate(names):
        assert torch.equal(seen[name], context[:, index])


def test_processors_are_put_back_also_after_an_exception(tiny_base):
    before = {name: id(processor) for name, processor in tiny_base.unet.attn_processors.items()}
    with pytest.raises(RuntimeError, match="inside"), layerwise_attention(tiny_base.unet):
        raise RuntimeError("inside")
    assert {name: id(processor) for name, processor in tiny_base.unet.attn_processors.items()} == before


@pytest.mark.parametrize("masked", [False, True])
def test_attend_equals_the_fused_kernel(masked):
    query, key, value = (torch.randn(2, 3, tokens, 8) for tokens in (9, 5, 5))
    mask = torch.randn(2, 1, 9, 5) if masked else None
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(attend(query, key, value, mask), expected)
