import pytest
import torch

from mos.edlora.attention import attend, join_heads, layerwise_attention, split_heads
from mos.sampling.attention import AttentionState, regional_attention, regional_processors
from mos.sampling.geometry import cross_attention_maps, feature_maps, lay_out, segment_cells, segment_windows
from mos.sampling.region import Region, RegionError, blend_weights

LAYOUTS = {
    "none": [],
    "one": [(0, 0, 0.5, 1, 1.0, 0.0)],
    "three side by side": [(0, 0, 0.33, 1, 1.0, 0.0), (0.33, 0, 0.67, 1, 1.0, 0.0), (0.67, 0, 1, 1, 1.0, 0.0)],
    "overlapping with weights": [(0, 0, 0.75, 1, 1.0, 0.0), (0.25, 0, 1, 1, 3.0, 0.0), (0, 0.5, 1, 1, 1.0, 0.0)],
    "soft": [(0, 0, 0.6, 1, 1.0, 0.2), (0.4, 0, 1, 0.8, 2.0, 0.1)],
    "nothing left for the global prompt": [(0, 0, 0.5, 1, 1.0, 0.0), (0.5, 0, 1, 1, 1.0, 0.0)],
}


def layout(name):
    return [
        Region(prompt="a cat", box=(x0, y0, x1, y1), weight=weight, soft_edge=soft)
        for x0, y0, x1, y1, weight, soft in LAYOUTS[name]
    ]


def loop_over_regions(query, key, value, weights, num_heads):
    """The reference's way: every cell attends to every segment in turn; shares are added up."""
    output = torch.zeros_like(query)
    for segment, shares in enumerate(weights):
        attended = attend(
            split_heads(query, num_heads),
            split_heads(key[:, segment], num_heads),
            split_heads(value[:, segment], num_heads),
        )
        output += join_heads(attended) * shares[None, :, None]
    return output


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("size", [(16, 16), (8, 12), (4, 4)])
def test_one_batched_pass_equals_the_loop_over_regions(name, size):
    generator = torch.Generator().manual_seed(0)
    weights = blend_weights(layout(name), size)
    query = torch.randn(3, size[0] * size[1], 32, generator=generator)
    key, value = torch.randn(2, 3, len(weights), 7, 32, generator=generator).unbind(0)
    got = regional_attention(query, key, value, segment_cells(weights), 4)
    wanted = loop_over_regions(query, key, value, weights, 4)
    assert torch.allclose(got, wanted, atol=1e-5)
    assert wanted.std() > 0.1


def test_without_regions_the_unet_gives_what_layerwise_attention_gives(tiny_base):
    unet = tiny_base.unet
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, tiny_base.facts.num_cross_attention_layers, 24, 16, generator=generator)
    with torch.no_grad(), layerwise_attention(unet):
        wanted = unet(latents, 3, encoder_hidden_states=context).sample
    state = AttentionState(segments=[context], geometry=lay_out(unet, [], (8, 8), torch.device("cpu")))
    with torch.no_grad(), regional_processors(unet, state):
        first = unet(latents, 3, encoder_hidden_states=context[:, 0]).sample
        kept = unet(latents, 3, encoder_hidden_states=context[:, 0]).sample
    assert torch.allclose(first, wanted, atol=1e-5)
    assert torch.equal(first, kept)


def test_region_over_the_whole_picture_equals_its_prompt_as_the_global_one(tiny_base):
    unet = tiny_base.unet
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    layers = tiny_base.facts.num_cross_attention_layers
    one, other = torch.randn(2, 1, layers, 24, 16, generator=generator).unbind(0)
    regions = [Region(prompt="a cat", box=(0, 0, 1, 1))]

    def run(segments, regions):
        state = AttentionState(segments=segments, geometry=lay_out(unet, regions, (8, 8), torch.device("cpu")))
        with torch.no_grad(), regional_processors(unet, state):
            return unet(latents, 3, encoder_hidden_states=one[:, 0]).sample

    assert torch.allclose(run([one, other], regions), run([other], []), atol=1e-5)
    assert not torch.allclose(run([one, other], regions), run([one], []), atol=1e-3)


def test_processors_found_are_put_back_after_an_error(tiny_base):
    before = dict(tiny_base.unet.attn_processors)
    state = AttentionState(segments=[], geometry=lay_out(tiny_base.unet, [], (8, 8), torch.device("cpu")))
    with pytest.raises(RuntimeError, match="stop"), regional_processors(tiny_base.unet, state):
        raise RuntimeError("stop")
    assert all(tiny_base.unet.attn_processors[name] is processor for name, processor in before.items())


def test_guard_lets_a_cell_look_only_at_cells_it_shares_a_prompt_with(tiny_base):
    geometry = lay_out(
        tiny_base.unet,
        [Region(prompt="a", box=(0, 0, 0.5, 1)), Region(prompt="b", box=(0.5, 0, 1, 1))],
        (8, 8),
        torch.device("cpu"),
    )
    allowed = geometry.allowed(16).view(4, 4, 4, 4)
    assert allowed[0, 0, :, :2].all()
    assert not allowed[0, 0, :, 2:].any()
    assert allowed[3, 3, :, 2:].all()


def test_feature_maps_are_those_the_unet_runs_on(tiny_base):
    seen = set()

    def record(module, args):
        seen.add(args[0].shape[1])

    names = [name for name, module in tiny_base.unet.named_modules() if name.endswith("attn2")]
    handles = [tiny_base.unet.get_submodule(name).register_forward_pre_hook(record) for name in names]
    with torch.no_grad():
        tiny_base.unet(torch.zeros(1, 4, 10, 6), 1, encoder_hidden_states=torch.zeros(1, 5, 16))
    for handle in handles:
        handle.remove()
    assert seen == {height * width for height, width in cross_attention_maps(tiny_base.unet, (10, 6))}
    assert feature_maps(tiny_base.unet, (10, 6)) == [(10, 6), (5, 3)]


def test_layout_is_checked_against_the_coarsest_map_of_the_unet(tiny_base):
    with pytest.raises(RegionError, match="coarsest 4x4"):
        lay_out(tiny_base.unet, [Region(prompt="a", box=(0.1, 0, 0.2, 1))], (8, 8), torch.device("cpu"))


def test_windows_hold_every_cell_of_their_region_and_whole_cells_of_the_coarsest_map():
    shares = torch.zeros(4, 12, 18)
    shares[1, 2:5, 1:6] = 1.0
    shares[2, 0, 0] = shares[2, 11, 17] = 0.5
    shares[3, :, 15:18] = 1.0
    windows = segment_windows(shares, align=4)
    assert windows[0] == (slice(0, 0), slice(0, 0))
    assert windows[1] == (slice(0, 8), slice(0, 8))
    assert windows[2] == (slice(0, 12), slice(0, 18))  # the picture's own edge where it is no whole cell
    assert windows[3] == (slice(0, 12), slice(12, 18))
