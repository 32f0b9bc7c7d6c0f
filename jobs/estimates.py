"""What a training, a fusion or an evaluation will cost, from counted operations: said before it, never judged.

The frozen U-Net is counted on the real Stable Diffusion 1.5 at 512 px, forward and backward 1.72 TFLOP a
picture, and scaled to other bases by their U-Net's linear weights and their number of pixels. A text encoder
runs every caption once a cross-attention layer; forward and backward are four operations a weight and token.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mos.facts import BaseFacts
    from mos.fusion import FusionConfig
    from mos.training import TrainingConfig

SD15_UNET_TFLOP_PER_PICTURE = 1.72
SD15_UNET_LINEAR_WEIGHTS = 266_977_280
"""Entries of the linears of SD 1.5's U-Net that a LoRA may tune; the yardstick for other bases."""
SD15_TFLOP_PER_FORWARD = 0.57
"""One pass of one picture through the U-Net: a third of forward and backward through the frozen one."""
SD15_ACTIVATION_BYTES = 1.07 * 2**30
GPU_TFLOPS = 200.0
"""What a data-centre GPU keeps up in half precision at these batch sizes, a quarter to a half of its peak."""
CPU_TFLOPS = 0.03
"""One core of a laptop in float32."""


def training_tflop(config: "TrainingConfig", facts: "BaseFacts") -> float:
    """Floating-point operations of one training, in 10^12."""
    layers = facts.num_cross_attention_layers if config.layerwise else 1
    text = sum(
        4e-12 * layers * encoder.max_length * _weights(facts, encoder.name) / config.draws_per_picture
        for encoder in facts.encoders
    )
    pictures = config.steps * config.batch_size * config.accumulation
    return pictures * (SD15_UNET_TFLOP_PER_PICTURE * _scale(facts) + text)


def _scale(facts: "BaseFacts") -> float:
    """One picture's work in this base's U-Net, in units of SD 1.5 at 512 px."""
    return _weights(facts, "unet") / SD15_UNET_LINEAR_WEIGHTS * (facts.resolution / 512) ** 2


def _weights(facts: "BaseFacts", component: str) -> int:
    """Entries of a component's linears that a LoRA may tune."""
    return sum(rows * columns for rows, columns in facts.linear_shapes[component].values())


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
