"""What regions cost: denoising with 0, 1, 3 and 6 regions against plain sampling and against a loop over regions.

`python -m benchmarks.sampling [--base PATH] [--size small|full] [--device cpu|cuda] [--steps N] [--rounds N]`.
Without a device the small base is measured on the CPU, and Stable Diffusion's full size on a GPU where there is one.
Plain sampling is the U-Net with diffusers' own attention processors and one encoding a prompt; the loop is
regional attention as the reference does it, region after region, keys and values anew at every step. All
variants take turns within one process; a round's ratios are taken within it and the median is printed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.results_file import Row, write_results
from mos.base_model import BaseModel, load_base
from mos.edlora.attention import attention_processors, join_heads, layer_indices, split_heads
from mos.edlora.tokens import PromptEncoder
from mos.random_base import random_base
from mos.sampling import Region, SamplingConfig, denoise
from mos.sampling.attention import AttentionState, RegionalProcessor
from mos.sampling.auto_layout import compact_boxes
from mos.sampling.conditioning import Conditioning, joined
from mos.sampling.geometry import RegionGeometry, lay_out
from mos.sampling.schedulers import make_scheduler, starting_noise

COUNTS = (0, 1, 3, 6)
GUIDANCE = 7.5


class LoopProcessor(RegionalProcessor):
    """Regional cross-attention one region after the other, as the reference implementation does it."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend; [batch, cells, channels] in and out."""
        if self.layer is None or encoder_hidden_states is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        query = attn.to_q(hidden_states)
        output = torch.zeros_like(query)
        shares = self.state.geometry.weights[query.shape[1]].to(query.dtype)
        for segment, encoding in enumerate(self.state.segments):
            cells = shares[segment].nonzero().flatten()
            context = encoding[:, self.layer].to(query.dtype)
            attended = scaled_dot_product_attention(
                split_heads(query[:, cells], attn.heads),
                split_heads(attn.to_k(context), attn.heads),
                split_heads(attn.to_v(context), attn.heads),
            )
            output[:, cells] += join_heads(attended) * shares[segment, cells][None, :, None]
        return attn.to_out[1](attn.to_out[0](output))


def main() -> None:
    """Measure and write benchmarks/results/sampling.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="diffusers folder or hub id; default: the small world")
    parser.add_argument("--size", choices=["small", "full"], default="small", help="full: SD 1.5 shapes, random")
    parser.add_argument("--device", help="default: the small base on cpu, full size on cuda")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1, help="pictures at once")
    options = parser.parse_args()
    torch.set_num_threads(1)
    both = [("cpu", options.size), ("cuda", "full")]
    wanted = [(options.device, options.size)] if options.device else both
    write_results("sampling", [row for device, size in wanted for row in rows_on(device, size, options)])


def rows_on(device: str, size: str, options: argparse.Namespace) -> list[Row]:
    """All rows of one device; without values where a GPU is asked for and there is none."""
    steps, rounds = options.steps or (10 if size == "small" else 3), options.rounds
    dtype = torch.float32 if device == "cpu" else torch.float16
    prefix = "" if device == "cpu" else "GPU: "
    if device != "cpu" and not torch.cuda.is_available():
        how = "random weights, half precision; no GPU here"
        return [row for count in COUNTS for row in rows_of(count, f"{prefix}SD 1.5 shapes", {}, {}, how, dtype)]
    if size == "full":
        base = random_base(size="full").to(device=device, dtype=dtype)
        return measure(base, f"{prefix}SD 1.5 shapes", steps, min(rounds, 3), options.batch)
    base = load_base(options.base, device=device)
    return measure(base, prefix + base.facts.name, steps, rounds, options.batch)


def measure(base: BaseModel, name: str, steps: int, rounds: int, batch: int) -> list[Row]:
    """Time every variant in turn, and compare what the loop and the batched pass draw."""
    config = SamplingConfig(num_inference_steps=steps, guidance_scale=GUIDANCE)
    variants: dict[str, Callable[[], Tensor]] = {"plain": lambda: plain(base, config, batch)}
    for count in COUNTS:
        variants[f"{count} regions"] = lambda count=count: batched(base, config, batch, count)
        if count:
            variants[f"loop, {count} regions"] = lambda count=count: loop(base, config, batch, count)
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    drawn = {variant: draw() for variant, draw in variants.items()}  # warm-up, and the pictures to compare
    for _ in range(rounds):
        for variant, draw in variants.items():
            seconds[variant].append(timed(draw, base.device))
    how = f"{name}, {base.device.type}, {steps} DPM-Solver++ steps, guidance {GUIDANCE}, batch {batch}, {rounds} rounds"
    unit = "CPU s" if base.device.type == "cpu" else "s"
    rows = [Row(name=f"{name}: plain", value=median(seconds["plain"]) / steps, unit=f"{unit}/step", how=how)]
    for count in COUNTS:
        rows += rows_of(count, name, seconds, drawn, how, base.dtype)
    return rows


def rows_of(
    count: int, name: str, seconds: dict[str, list[float]], drawn: dict[str, Tensor], how: str, dtype: torch.dtype
) -> list[Row]:
    """The rows of one number of regions; without `seconds` they say that nothing was measured."""
    variant = f"{count} regions"
    goal = "<= 1.25" if count == 3 else ""

    def ratio(other: str) -> float | None:
        return None if not seconds else median(a / b for a, b in zip(seconds[variant], seconds[other], strict=True))

    rows = [Row(name=f"{name}: {variant} / plain", value=ratio("plain"), unit="ratio", goal=goal, how=how)]
    if count == 0:
        return rows
    rows.append(Row(name=f"{name}: {variant} / 0 regions", value=ratio("0 regions"), unit="ratio", goal=goal, how=how))
    rows.append(Row(name=f"{name}: {variant} / loop", value=ratio(f"loop, {variant}"), unit="ratio", how=how))
    error = None if not drawn else difference(drawn[variant], drawn[f"loop, {variant}"])
    tolerance = "<= 1e-4" if dtype == torch.float32 else ""
    rows.append(Row(name=f"{name}: {variant} - loop", value=error, unit="relative", goal=tolerance, how=how))
    return rows


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((one - other).abs().max() / one.abs().max())


def timed(draw: Callable[[], Tensor], device: torch.device) -> float:
    """CPU seconds of this process, or wall seconds with the device waited for."""
    if device.type == "cpu":
        start = time.process_time()
        draw()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    draw()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def regions(count: int) -> tuple[Region, ...]:
    """`count` boxes that share the picture."""
    return tuple(Region(prompt="a cat", box=box) for box in compact_boxes(count))


def encodings(base: BaseModel, batch: int, count: int) -> tuple[Conditioning, Conditioning]:
    """Prompts and negative prompts of a scene with `count` regions."""
    encoder = PromptEncoder(base)
    words = ["a photo in the forest", "a cat", "a robot", "a fish", "a house", "a mug", "a tree"]
    positive = tuple(encoder.encode([text] * batch).context for text in words[: 1 + count])
    negative = (encoder.encode([""] * batch).context,) * (1 + count)
    return Conditioning(segments=positive), Conditioning(segments=negative)


def noise(base: BaseModel, batch: int) -> Tensor:
    """The same starting noise for every variant."""
    side = base.facts.sample_size
    return starting_noise(list(range(batch)), (base.facts.latent_channels, side, side))


def batched(base: BaseModel, config: SamplingConfig, batch: int, count: int) -> Tensor:
    """This project's sampling."""
    positive, negative = encodings(base, batch, count)
    return denoise(base, positive, negative, noise(base, batch), config, regions=regions(count))


def loop(base: BaseModel, config: SamplingConfig, batch: int, count: int) -> Tensor:
    """The same picture with one attention call a region."""
    positive, negative = encodings(base, batch, count)
    both = joined(negative, positive)
    side = base.facts.sample_size
    geometry = lay_out(base.unet, regions(count), (side, side), base.device)
    with loop_processors(base.unet, both.segments, geometry):
        return plain_steps(base, both.segments[0][:, 0], noise(base, batch), config)


@contextmanager
def loop_processors(unet: Any, segments: Sequence[Tensor], geometry: RegionGeometry) -> Iterator[None]:
    """Install the loop in every attention module."""
    state = AttentionState(segments=segments, geometry=geometry)
    with attention_processors(unet, [LoopProcessor(layer, state) for layer in layer_indices(unet)]):
        yield


def plain(base: BaseModel, config: SamplingConfig, batch: int) -> Tensor:
    """Sampling as diffusers does it, no regions and no layers."""
    positive, negative = encodings(base, batch, 0)
    return plain_steps(base, joined(negative, positive).segments[0][:, 0], noise(base, batch), config)


@torch.no_grad()
def plain_steps(base: BaseModel, context: Tensor, latents: Tensor, config: SamplingConfig) -> Tensor:
    """The denoising loop of a diffusers pipeline."""
    scheduler = make_scheduler(config.scheduler, base.scheduler)
    scheduler.set_timesteps(config.num_inference_steps, device=base.device)
    latents = latents.to(base.device) * scheduler.init_noise_sigma
    context = context.to(base.dtype)
    for timestep in scheduler.timesteps:
        inputs = scheduler.scale_model_input(torch.cat([latents] * 2), timestep).to(base.dtype)
        prediction = base.unet(inputs, timestep, encoder_hidden_states=context, return_dict=False)[0].float()
        negative, positive = prediction.chunk(2)
        guided = negative + config.guidance_scale * (positive - negative)
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
    return latents


if __name__ == "__main__":
    main()
