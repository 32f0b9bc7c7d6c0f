"""Ways to merge concepts by their weights alone: the baselines of gradient fusion.

`average` and `sum` take the mean and the sum of the updates (never of `up` and `down` apart); `svd-average` truncates
the mean to one concept's rank; `ties` is TIES-Merging (Yadav et al. 2023, arXiv:2306.01708: trim, elect signs, mean
of those that agree); `dare` is DARE (Yu et al. 2023, arXiv:2311.03099: drop at random, rescale, then the mean).
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mos.base_model import BaseModel
from mos.edlora.lora import LowRank
from mos.fusion.config import FusionConfig
from mos.fusion.source import FusionSource

Merge = Callable[[Sequence[LowRank], int, FusionConfig, str], LowRank]


def merge_weights(
    base: BaseModel, sources: Sequence[FusionSource], config: FusionConfig
) -> dict[str, dict[str, LowRank]]:
    """Merge every layer that some concept tunes; a concept that does not tune it counts as a zero update.

    Returns:
        Component -> canonical name -> update, float32.
    """
    merge = _MERGES[config.strategy]
    result: dict[str, dict[str, LowRank]] = {}
    for component in (*base.text_encoders, "unet"):
        for name in base.facts.linear_shapes[component]:
            updates = [update for source in sources if (update := source.update(component, name)) is not None]
            if updates:
                merged = merge(updates, len(sources), config, f"{component}/{name}")
                result.setdefault(component, {})[name] = merged
    return result


def _sum(updates: Sequence[LowRank], count: int, config: FusionConfig, name: str) -> LowRank:
    del count, config, name
    return LowRank(
        up=torch.cat([update.up for update in updates], dim=1),
        down=torch.cat([update.down for update in updates], dim=0),
    )


def _average(updates: Sequence[LowRank], count: int, config: FusionConfig, name: str) -> LowRank:
    return _sum(updates, count, config, name).scaled(1 / count)


def _svd_average(updates: Sequence[LowRank], count: int, config: FusionConfig, name: str) -> LowRank:
    mean = _average(updates, count, config, name)
    basis, up = torch.linalg.qr(mean.up.double())
    other, down = torch.linalg.qr(mean.down.double().T)
    left, values, right = torch.linalg.svd(up @ down.T)
    rank = min(config.merge_rank, len(values))
    halves = values[:rank].sqrt()
    return LowRank(
        up=(basis @ left[:, :rank] * halves).float(), down=(halves[:, None] * (right[:rank] @ other.T)).float()
    )


def _ties(updates: Sequence[LowRank], count: int, config: FusionConfig, name: str) -> LowRank:
    del count, name
    trimmed = torch.stack([_trimmed(update.delta(), config.density) for update in updates])
    elected = trimmed.sum(dim=0).sign()
    agreeing = torch.where(trimmed.sign() == elected, trimmed, 0.0)
    votes = (agreeing != 0).sum(dim=0).clamp_min(1)
    return _dense(agreeing.sum(dim=0) / votes)


def _trimmed(delta: Tensor, density: float) -> Tensor:
    """Keep the largest entries by magnitude."""
    kept = max(1, round(density * delta.numel()))
    threshold = delta.abs().flatten().kthvalue(delta.numel() - kept + 1).values
    return torch.where(delta.abs() >= threshold, delta, 0.0)


def _dare(updates: Sequence[LowRank], count: int, config: FusionConfig, name: str) -> LowRank:
    total = torch.zeros(updates[0].shape)
    for index, update in enumerate(updates):
        label = hashlib.sha256(f"{config.seed}|{name}|{index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(label[:7], "big"))
        kept = torch.rand(update.shape, generator=generator) < config.density
        total += torch.where(kept, update.delta() / config.density, 0.0)
    return _dense(total / count)


def _dense(delta: Tensor) -> LowRank:
    """An update of full rank, as the product with an identity on its shorter side."""
    out, into = delta.shape
    if into <= out:
        return LowRank(up=delta, down=torch.eye(into))
    return LowRank(up=torch.eye(out), down=delta)


_MERGES: dict[str, Merge] = {
    "sum": _sum,
    "average": _average,
    "svd-average": _svd_average,
    "ties": _ties,
    "dare": _dare,
}
