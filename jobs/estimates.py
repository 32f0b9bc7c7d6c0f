"""What a training will cost, from counted operations: printed by --dry-run, never judged.

Counted on the real Stable Diffusion 1.5 at 512 px: forward and backward through the frozen U-Net 1.72 TFLOP
a picture, sixteen encoded prompts 0.43. Other bases scale with their U-Net's linear weights and their
number of pixels.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mos.facts import BaseFacts
    from mos.training import TrainingConfig

SD15_TFLOP_PER_PICTURE = 2.15
SD15_UNET_LINEAR_WEIGHTS = 195e6
"""Entries of the attention linears of SD 1.5's U-Net that training touches; the yardstick for other bases."""
GPU_TFLOPS = 200.0
"""What a data-centre GPU keeps up in half precision at these batch sizes, a quarter to a half of its peak."""
CPU_TFLOPS = 0.03
"""One core of a laptop in float32."""


def training_tflop(config: "TrainingConfig", facts: "BaseFacts") -> float:
    """Floating-point operations of one training, in 10^12."""
    weights = sum(rows * columns for rows, columns in facts.linear_shapes["unet"].values())
    scale = weights / SD15_UNET_LINEAR_WEIGHTS * (facts.resolution / 512) ** 2
    pictures = config.steps * config.batch_size * config.accumulation
    return pictures * SD15_TFLOP_PER_PICTURE * scale


def estimate_training(config: "TrainingConfig", facts: "BaseFacts", *, num_seeds: int = 1) -> dict[str, float]:
    """Minutes on one GPU, and on one CPU core, both from counted operations and assumed rates."""
    tflop = num_seeds * training_tflop(config, facts)
    return {
        "tflop": round(tflop, 2),
        "gpu_minutes": round(tflop / GPU_TFLOPS / 60, 3),
        "cpu_core_minutes": round(tflop / CPU_TFLOPS / 60, 1),
    }
