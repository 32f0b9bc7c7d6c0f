"""What a training, a fusion or an evaluation will cost, from counted operations: printed by --dry-run, never judged.

Counted on the real Stable Diffusion 1.5 at 512 px: forward and backward through the frozen U-Net 1.72 TFLOP
a picture, sixteen encoded prompts 0.43. Other bases scale with their U-Net's linear weights and their
number of pixels.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mos.facts import BaseFacts
    from mos.fusion import FusionConfig
    from mos.training import TrainingConfig

SD15_TFLOP_PER_PICTURE = 2.15
SD15_UNET_LINEAR_WEIGHTS = 195e6
"""Entries of the attention linears of SD 1.5's U-Net that training touches; the yardstick for other bases."""
SD15_TFLOP_PER_FORWARD = 0.57
"""One pass of one picture through the U-Net: a third of forward and backward through the frozen one."""
SD15_ACTIVATION_BYTES = 1.07 * 2**30
GPU_TFLOPS = 200.0
"""What a data-centre GPU keeps up in half precision at these batch sizes, a quarter to a half of its peak."""
CPU_TFLOPS = 0.03
"""One core of a laptop in float32."""


def training_tflop(config: "TrainingConfig", facts: "BaseFacts") -> float:
    """Floating-point operations of one training, in 10^12."""
    pictures = config.steps * config.batch_size * config.accumulation
    return pictures * SD15_TFLOP_PER_PICTURE * _scale(facts)


def _scale(facts: "BaseFacts") -> float:
    """One picture's work on this base, in units of SD 1.5 at 512 px."""
    weights = sum(rows * columns for rows, columns in facts.linear_shapes["unet"].values())
    return weights / SD15_UNET_LINEAR_WEIGHTS * (facts.resolution / 512) ** 2


def slot_memory_bytes(config: "TrainingConfig", facts: "BaseFacts") -> int:
    """Memory one more concept takes beside a base that is loaded: activations of its batch, and its own state.

    Activations were measured as 1.07 GiB a picture for SD 1.5 at 512 px in half precision and scale like the
    operations; the state is the factors and embeddings with gradient and two moments in float32.
    """
    from mos.facts import tuned_linears

    width = 2 if config.precision == "fp32" else 1
    activations = config.batch_size * _scale(facts) * SD15_ACTIVATION_BYTES * width
    tuned = tuned_linears(facts, config.tuned)
    shapes = [facts.linear_shapes[component][name] for component, names in tuned.items() for name in names]
    factors = config.rank * sum(rows + columns for rows, columns in shapes)
    layers = facts.num_cross_attention_layers if config.layerwise else 1
    rows = config.num_words * layers * sum(encoder.hidden_dim for encoder in facts.encoders)
    return int(activations) + 4 * 4 * (factors + rows)


def estimate_training(config: "TrainingConfig", facts: "BaseFacts", *, num_seeds: int = 1) -> dict[str, float]:
    """Minutes on one GPU, and on one CPU core, both from counted operations and assumed rates."""
    return _minutes(num_seeds * training_tflop(config, facts))


def estimate_fusion(config: "FusionConfig", num_concepts: int, facts: "BaseFacts") -> dict[str, float]:
    """The same for a fusion: the pictures drawn while recording; solving is seconds on a CPU at any size."""
    seeds = len(config.latent_seeds) + (len(config.held_out_seeds) if config.measure else 0)
    passes = num_concepts * seeds * config.sampling_steps if config.strategy == "gradient" else 0
    return _minutes(passes * SD15_TFLOP_PER_FORWARD * _scale(facts))


def estimate_pictures(num_pictures: int, num_inference_steps: int, facts: "BaseFacts") -> dict[str, float]:
    """The same for pictures drawn with guidance: two passes a step."""
    return _minutes(2 * num_pictures * num_inference_steps * SD15_TFLOP_PER_FORWARD * _scale(facts))


def _minutes(tflop: float) -> dict[str, float]:
    return {
        "tflop": round(tflop, 2),
        "gpu_minutes": round(tflop / GPU_TFLOPS / 60, 3),
        "cpu_core_minutes": round(tflop / CPU_TFLOPS / 60, 1),
    }
