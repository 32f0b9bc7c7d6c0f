"""Which linear layers of a base model are tuned, in which order, and under which names.

The canonical name of a layer is its module path in the U-Net (``down_blocks.0...to_q``) or in the text
encoder without a leading ``text_model.`` (``encoder.layers.0.self_attn.q_proj``): transformers 5 dropped
that prefix, published LoRA files still carry it. Layer order is down, mid, up; ``named_modules`` lists the
mid block last, which is not the order in which the U-Net runs.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

_TEXT_PREFIX = "text_model."
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_UNET_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def cross_attention_names(unet: nn.Module) -> tuple[str, ...]:
    """Name every cross-attention module of a U-Net; the position in the tuple is the layer index."""
    return tuple(name for name in attention_names(unet) if unet.get_submodule(name).is_cross_attention)


def attention_names(unet: nn.Module) -> tuple[str, ...]:
    """Name every attention module of a U-Net's transformer blocks, down, mid, up."""
    return tuple(
        f"{block}.{leaf}"
        for block in _transformer_blocks(unet)
        for leaf in ("attn1", "attn2")
        if getattr(unet.get_submodule(block), leaf, None) is not None
    )


def attention_linears(module: nn.Module, *, feed_forward: bool = False, projections: bool = False) -> tuple[str, ...]:
    """Name the layers a LoRA tunes in a U-Net or a text encoder, in the order they run.

    Args:
        module: a diffusers U-Net or a transformers CLIP text model.
        feed_forward: also the two linears of every feed-forward block.
        projections: also the 1x1 projections around a U-Net's transformer blocks (convolutions in SD 1.x).

    Returns:
        Canonical names; the layer itself comes from :func:`linear_module`.
    """
    if hasattr(module, "down_blocks"):
        return tuple(_unet_linears(module, feed_forward, projections))
    return tuple(_text_linears(module, feed_forward))


def linear_module(module: nn.Module, name: str) -> nn.Module:
    """Look a canonical name up in a component.

    Raises:
        KeyError: If the component has no such layer.
    """
    for candidate in (name, _TEXT_PREFIX + name):
        try:
            return module.get_submodule(candidate)
        except AttributeError:
            continue
    raise KeyError(name)


def linear_weight(module: nn.Module, name: str) -> Tensor:
    """Return a tuned layer's weight as [out, in]; a 1x1 convolution's is flattened (a view)."""
    weight = linear_module(module, name).weight
    assert isinstance(weight, Tensor)
    return weight.flatten(1)


def canonical_name(name: str) -> str:
    """Drop the ``text_model.`` prefix that older transformers and published files put before a name."""
    return name.removeprefix(_TEXT_PREFIX)


def input_sites(module: nn.Module, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Group layers by the input they share.

    Self-attention's q, k and v read one tensor, cross-attention's k and v another; every other layer reads
    its own. A site is named after its attention module with ``.qkv`` or ``.kv``, or after its only layer.

    Args:
        module: the component that ``names`` belong to.
        names: canonical names, any subset of the component's linears.

    Returns:
        Site name -> its layers, both in the order of ``names``.
    """
    sites: dict[str, list[str]] = {}
    for name in names:
        sites.setdefault(_site_of(module, name), []).append(name)
    return {site: tuple(members) for site, members in sites.items()}


def _site_of(module: nn.Module, name: str) -> str:
    parent, _, leaf = name.rpartition(".")
    if leaf in ("q_proj", "k_proj", "v_proj"):
        return f"{parent}.qkv"
    if leaf in ("to_q", "to_k", "to_v"):
        if not linear_module(module, parent).is_cross_attention:
            return f"{parent}.qkv"
        if leaf != "to_q":
            return f"{parent}.kv"
    return name


def _unet_stages(unet: nn.Module) -> Iterator[str]:
    for index in range(len(unet.get_submodule("down_blocks"))):  # type: ignore[arg-type]
        yield f"down_blocks.{index}"
    if getattr(unet, "mid_block", None) is not None:
        yield "mid_block"
    for index in range(len(unet.get_submodule("up_blocks"))):  # type: ignore[arg-type]
        yield f"up_blocks.{index}"


def _transformers(unet: nn.Module) -> Iterator[str]:
    for stage in _unet_stages(unet):
        attentions = getattr(unet.get_submodule(stage), "attentions", None)
        for index in range(len(attentions) if attentions is not None else 0):
            yield f"{stage}.attentions.{index}"


def _transformer_blocks(unet: nn.Module) -> Iterator[str]:
    for transformer in _transformers(unet):
        for index in range(len(unet.get_submodule(f"{transformer}.transformer_blocks"))):  # type: ignore[arg-type]
            yield f"{transformer}.transformer_blocks.{index}"


def _unet_linears(unet: nn.Module, feed_forward: bool, projections: bool) -> Iterator[str]:
    for transformer in _transformers(unet):
        if projections:
            yield f"{transformer}.proj_in"
        for index in range(len(unet.get_submodule(f"{transformer}.transformer_blocks"))):  # type: ignore[arg-type]
            block = f"{transformer}.transformer_blocks.{index}"
            for attention in ("attn1", "attn2"):
                if getattr(unet.get_submodule(block), attention, None) is not None:
                    yield from (f"{block}.{attention}.{leaf}" for leaf in _UNET_ATTENTION)
            if feed_forward:
                yield from (f"{block}.ff.net.0.proj", f"{block}.ff.net.2")
        if projections:
            yield f"{transformer}.proj_out"


def _text_linears(encoder: nn.Module, feed_forward: bool) -> Iterator[str]:
    layers = linear_module(encoder, "encoder.layers")
    for index in range(len(layers)):  # type: ignore[arg-type]
        layer = f"encoder.layers.{index}"
        yield from (f"{layer}.self_attn.{leaf}" for leaf in _TEXT_ATTENTION)
        if feed_forward:
            yield from (f"{layer}.mlp.fc1", f"{layer}.mlp.fc2")
