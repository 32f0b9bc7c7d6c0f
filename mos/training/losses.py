"""The training loss: noise prediction under a mask, and the attention regulariser.

Shapes: b pictures, C latent channels, h x w latent size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mos.edlora.attention import LayerwiseProcessor, attention_weights


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Return sqrt(a_t) x + sqrt(1 - a_t) noise (DDPM, arXiv:2006.11239, eq. 4)."""
    alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def prediction_target(
    latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor, prediction_type: str
) -> Tensor:
    """Return what the U-Net should predict: the noise, or v = sqrt(a_t) noise - sqrt(1 - a_t) x."""
    if prediction_type == "epsilon":
        return noise
    alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents


def min_snr_weights(
    alphas_cumprod: Tensor, timesteps: Tensor, gamma: float, prediction_type: str, power: float = 1.0
) -> Tensor:
    """Return min(SNR, gamma) / SNR, or / (SNR + 1) for v prediction (arXiv:2303.09556), to a power, [b]."""
    alpha = alphas_cumprod[timesteps]
    snr = alpha / (1 - alpha)
    clipped = snr.clamp(max=gamma)
    weights: Tensor = (clipped / (snr if prediction_type == "epsilon" else snr + 1)) ** power
    return weights


def masked_errors(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return every picture's squared error, summed over channels and averaged over weighted pixels, [b].

    The sum over channels (four times a mean in SD 1.x) sets the balance with the attention regulariser.

    Args:
        prediction: [b, C, h, w].
        target: [b, C, h, w].
        weight: [b, 1, h, w], at least one pixel above 0 a picture.
    """
    error = (prediction.to(target.dtype) - target).square() * weight
    return error.sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))


class AttentionRecord:
    """Collects the cross-attention that pictures pay to their concept words during one forward pass.

    Args:
        positions: a list a picture, of the token positions of V_rand and of V_class (the same number of
            words for every picture, the first occurrence counts).
        device: where attention is computed.
    """

    def __init__(self, positions: Sequence[Sequence[int]], device: torch.device) -> None:
        self._positions = torch.tensor([list(words) for words in positions], device=device)
        self.maps: dict[int, list[Tensor]] = {}

    def add(self, weights: Tensor) -> None:
        """Keep the words' columns of [b, heads, queries, keys], averaged over heads."""
        queries = weights.shape[2]
        where = self._positions[:, None, None, :].expand(-1, weights.shape[1], queries, -1)
        self.maps.setdefault(queries, []).append(weights.gather(3, where).mean(dim=1))


class RecordingProcessor(LayerwiseProcessor):
    """A cross-attention processor that fills an :class:`AttentionRecord`; self-attention runs as usual."""

    def __init__(self, layer: int | None, record: AttentionRecord) -> None:
        super().__init__(layer)
        self._record = record

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend with explicit weights and keep the concept's columns."""
        if self.layer is None:
            return super().attend(query, key, value, mask)
        weights = attention_weights(query, key, mask)
        self._record.add(weights)
        return weights @ value


def attention_penalties(record: AttentionRecord, masks: Tensor, form: str, latent_size: tuple[int, int]) -> Tensor:
    """Return every picture's regulariser, [b].

    At each resolution the maps of all layers are averaged and divided by their maximum. V_rand is penalised
    by its mean outside the mask; V_class likewise (``outside``) or by its mean squared distance to the mask
    (``full-identity``).

    Args:
        record: of one forward pass.
        masks: [b, 1, h, w].
        form: ``outside`` or ``full-identity``.
        latent_size: (h, w) of the pass.
    """
    penalties: list[Tensor] = []
    for queries, layers in sorted(record.maps.items()):
        maps = torch.stack(layers).mean(dim=0).float()
        maps = maps / maps.amax(dim=1, keepdim=True).clamp(min=1e-12)
        mask = _flat_mask(masks, queries, latent_size)
        outside = ((maps * (1 - mask)).sum(dim=1) / (1 - mask).sum(dim=1).clamp(min=1)).unbind(dim=1)
        class_map = maps[:, :, -1]
        covering = (class_map - mask[:, :, 0]).square().mean(dim=1)
        last = covering if form == "full-identity" else outside[-1]
        penalties.append(last if len(outside) == 1 else outside[0] + last)
    return torch.stack(penalties).mean(dim=0)


def _flat_mask(masks: Tensor, queries: int, latent_size: tuple[int, int]) -> Tensor:
    """Resize [b, 1, h, w] to a feature map of so many cells and flatten it, [b, queries, 1]."""
    height, width = latent_size
    factor = round((height * width / queries) ** 0.5)
    size: Any = (-(-height // factor), -(-width // factor))
    resized = interpolate(masks.float(), size=size, mode="area")
    return resized.flatten(2).transpose(1, 2)
