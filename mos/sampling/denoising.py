"""From noise to latents: the denoising loop with guidance, regions, guards and picture conditions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from mos.base_model import BaseModel
from mos.edlora.tokens import PromptEncoding
from mos.sampling.attention import AttentionState, regional_processors
from mos.sampling.condition import Condition, condition_features
from mos.sampling.conditioning import Conditioning, joined
from mos.sampling.config import BleedingGuard, SamplingConfig
from mos.sampling.geometry import RegionGeometry, Window, lay_out, segment_windows
from mos.sampling.region import Region
from mos.sampling.schedulers import make_scheduler
from mos.sampling.unfused import Scale, region_updates

OnStep = Callable[[int, int], None]


@torch.no_grad()
def denoise(
    base: BaseModel,
    encoding: PromptEncoding | Conditioning,
    uncond: PromptEncoding | Conditioning | None,
    latents: Tensor,
    config: SamplingConfig | None = None,
    *,
    regions: Sequence[Region] = (),
    scale: Scale = 1.0,
    conditions: Sequence[Condition] = (),
    generators: Sequence[torch.Generator] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise latents with the base as it is now (call it inside ``applied`` to use an adapter).

    Every linear of the U-Net runs as a module at every step, so forward hooks see its inputs, except keys
    and values of cross-attention, whose inputs do not change and which run once.

    Args:
        base: Model that predicts; its weights are not changed.
        encoding: What to draw, a batch of prompts, with one segment a region.
        uncond: What guidance moves away from; None, or a guidance scale of 1, runs a single branch.
        latents: [batch, channels, height, width] unit noise.
        config: Steps, guidance and scheduler.
        regions: The layout; the encodings then have `1 + len(regions)` segments.
        scale: Factor on the adapters that regions carry.
        conditions: Sketches, poses.
        generators: One a picture, for schedulers that draw noise at each step.
        on_step: Called with (steps done, steps in all).

    Returns:
        [batch, channels, height, width] float32, scaled as the autoencoder's latents times its scaling
        factor.

    Raises:
        RegionError: If the layout does not fit the feature maps.
        BadInputError: If an adapter or condition does not fit the base.
    """
    config = SamplingConfig() if config is None else config
    positive = Conditioning.of(encoding)
    is_guided = uncond is not None and config.guidance_scale != 1.0
    both = joined(Conditioning.of(uncond), positive) if is_guided and uncond is not None else positive
    size = (latents.shape[2], latents.shape[3])
    geometry = lay_out(base.unet, regions, size, base.device)
    if any(len(branch.segments) != geometry.num_segments for branch in (positive, both)):
        raise ValueError(f"{len(positive.segments)} segments for {len(regions)} regions")
    state = AttentionState(segments=both.segments, geometry=geometry)
    predictor = _Predictor(base, both, state, conditions, config, size)
    with ExitStack() as stack:
        stack.enter_context(regional_processors(base.unet, state))
        if any(region.adapter is not None for region in regions):
            stack.enter_context(region_updates(base, state, scale))
        return _run_steps(predictor, latents, config, is_guided, generators, on_step)


def _run_steps(
    predictor: _Predictor,
    latents: Tensor,
    config: SamplingConfig,
    is_guided: bool,
    generators: Sequence[torch.Generator] | None,
    on_step: OnStep | None,
) -> Tensor:
    scheduler = make_scheduler(config.scheduler, predictor.base.scheduler)
    scheduler.set_timesteps(config.num_inference_steps, device=predictor.base.device)
    latents = latents.to(predictor.base.device, torch.float32) * scheduler.init_noise_sigma
    options = {"return_dict": False}
    if generators is not None and "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = list(generators)  # type: ignore[assignment]
    total = len(scheduler.timesteps)
    for index, timestep in enumerate(scheduler.timesteps):
        inputs = scheduler.scale_model_input(latents, timestep)
        prediction = predictor(inputs, timestep, index / total, copies=2 if is_guided else 1)
        if is_guided:
            negative, positive = prediction.chunk(2)
            prediction = negative + config.guidance_scale * (positive - negative)
        latents = scheduler.step(prediction, timestep, latents, **options)[0]
        if on_step is not None:
            on_step(index + 1, total)
    return latents


class _Predictor:
    """One U-Net call over all branches; one a segment while a guard draws them apart."""

    def __init__(
        self,
        base: BaseModel,
        conditioning: Conditioning,
        state: AttentionState,
        conditions: Sequence[Condition],
        config: SamplingConfig,
        size: tuple[int, int],
    ) -> None:
        self.base = base
        self._conditioning = conditioning
        self._state = state
        self._conditions = conditions
        self._config = config
        self._size = size
        self._align = 2 ** (len(base.unet.config.block_out_channels) - 1)
        self._features: tuple[float, list[Tensor] | None] | None = None

    def __call__(self, latents: Tensor, timestep: Tensor, progress: float, *, copies: int) -> Tensor:
        """Predict for [batch, ...] latents repeated for every branch: [copies * batch, ...] float32."""
        guard = self._guard(progress)
        has_regions = self._state.geometry.num_segments > 1
        self._state.is_guarded = has_regions and guard == "self-attention"
        inputs = torch.cat([latents] * copies).to(self.base.dtype)
        whole = (slice(0, self._size[0]), slice(0, self._size[1]))
        if not has_regions or guard not in ("blend", "windows"):
            return self._predict(inputs, timestep, progress, whole)
        shares = self._state.geometry.weights[self._size[0] * self._size[1]].view(-1, *self._size)
        windows = [whole] * len(shares)
        if guard == "windows":
            windows[1:] = segment_windows(shares[1:], align=self._align)
        return self._predict_apart(inputs, timestep, progress, shares, windows)

    def _guard(self, progress: float) -> BleedingGuard:
        """What acts at this step: after the windows, regions still look at nothing but themselves."""
        guard, until = self._config.bleeding_guard, self._config.guarded_part
        if progress < until:
            return guard
        return "self-attention" if guard == "windows" and until > 0 else "none"

    def _predict_apart(
        self, inputs: Tensor, timestep: Tensor, progress: float, shares: Tensor, windows: Sequence[Window]
    ) -> Tensor:
        """Denoise under each prompt by itself, within its window, and mix by region."""
        mixed = torch.zeros(inputs.shape, device=inputs.device)
        try:
            for segment, (rows, columns) in enumerate(windows):
                share = shares[segment, rows, columns]
                if share.any():
                    self._state.alone = segment
                    part = self._predict(inputs[..., rows, columns], timestep, progress, (rows, columns))
                    mixed[..., rows, columns] += part * share
        finally:
            self._state.alone = None
        return mixed

    def _predict(self, inputs: Tensor, timestep: Tensor, progress: float, window: Window) -> Tensor:
        features = self._active_features(progress)
        prediction: Tensor = self.base.unet(
            inputs,
            timestep,
            encoder_hidden_states=self._conditioning.segments[0][:, 0].to(inputs.dtype),
            added_cond_kwargs=self._size_conditioning(inputs),
            down_intrablock_additional_residuals=None if features is None else _cut(features, window, self._size),
            return_dict=False,
        )[0]
        return prediction.float()

    def _active_features(self, progress: float) -> list[Tensor] | None:
        acting = float(sum(progress < condition.until for condition in self._conditions))
        if self._features is None or self._features[0] != acting:
            geometry: RegionGeometry = self._state.geometry
            features = condition_features(self._conditions, geometry, self.base.unet, progress=progress)
            self._features = (acting, features)
        features = self._features[1]
        return None if features is None else [feature.to(self.base.dtype) for feature in features]

    def _size_conditioning(self, inputs: Tensor) -> dict[str, Any] | None:
        """SDXL's pooled prompt and its picture size, crop and target size; None for the others."""
        pooled = self._conditioning.pooled
        if pooled is None:
            return None
        pooled = pooled.repeat_interleave(inputs.shape[0] // pooled.shape[0], dim=0)
        height, width = (side * self.base.facts.vae_scale_factor for side in inputs.shape[2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=inputs.dtype, device=inputs.device)
        return {"text_embeds": pooled.to(inputs.dtype), "time_ids": sizes.expand(inputs.shape[0], -1)}


def _cut(features: Sequence[Tensor], window: Window, size: tuple[int, int]) -> list[Tensor]:
    """The part of every level's feature map that lies in a window of the latents."""
    parts = []
    for feature in features:
        spans = []
        for span, total, count in zip(window, size, feature.shape[2:], strict=True):
            step = -(-total // count)
            spans.append(slice(span.start // step, -(-span.stop // step)))
        parts.append(feature[..., spans[0], spans[1]])
    return parts
