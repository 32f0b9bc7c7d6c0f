"""What training several concepts in one step gains over training them one after another.

`python -m benchmarks.train [--steps N] [--rounds N]`, on a bare machine too. In one run: the peer (diffusers'
LoRA recipe written plainly with PEFT), one slot, and 2, 4 and 8 slots, on the small base's shapes at batch 1
and 2; with a GPU also full-size Stable Diffusion 1.5 shapes against the arithmetic floor. All variants take
turns within one process and the median round counts; a ratio of concept-steps per CPU second (per second on
a GPU) is taken within each round, so that both sides met the same machine. Peak memory is measured in a
process of its own a variant.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import mse_loss

from benchmarks.results_file import Row, write_results
from mos.base_model import BaseModel
from mos.random_base import random_base
from mos.training import ConceptData, SlotSpec, Trainer, TrainingConfig, concept_data

SLOTS = (1, 2, 4, 8)
STEP_TFLOP_PER_PICTURE = 1.72 + 0.43
"""U-Net forward and backward and 16 prompts of SD 1.5 at 512 px, counted on the architecture, in TFLOP."""

Step = Callable[[], None]


def made_up_concept(name: str, side: int, seed: int) -> ConceptData:
    """Four pictures of noise; the cost does not depend on what they show."""
    rng = np.random.default_rng(seed)
    captions = ("a photo of <TOK> in snow", "a photo of <TOK> on the beach", "a <TOK> in the city", "a small <TOK>")
    pictures = [
        (Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)), text, None) for text in captions
    ]
    return concept_data(pictures, name=name, class_word="cat", kind="pet")


def slots_step(base: BaseModel, num_slots: int, batch_size: int, precision: str = "fp32") -> Step:
    """A step that trains so many concepts at once."""
    trainer = Trainer(base)
    for index in range(num_slots):
        data = made_up_concept(f"c{index}", base.facts.resolution, index)
        config = TrainingConfig(steps=100_000, batch_size=batch_size, seed=index, embedding_norm_stop=1e9).with_options(
            precision=precision
        )
        trainer.admit(SlotSpec(key=f"c{index}", data=data, config=config))

    def step() -> None:
        trainer.step()

    return step


def peer_step(base: BaseModel, batch_size: int, precision: str = "fp32") -> Step:
    """One concept by diffusers' LoRA recipe: PEFT on the attention of U-Net and text encoder, one prompt a picture.

    The autoencoder and the text encoder run in every step, attention is what diffusers and transformers
    choose, AdamW is torch's. The base is changed by PEFT and must not be used otherwise afterwards.
    """
    from peft import LoraConfig, get_peft_model

    unet = get_peft_model(base.unet, LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    targets = ["q_proj", "k_proj", "v_proj", "out_proj"]
    text_encoder = get_peft_model(base.text_encoder, LoraConfig(r=4, lora_alpha=4, target_modules=targets))
    parameters = [p for model in (unet, text_encoder) for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    data = made_up_concept("peer", base.facts.resolution, 0)
    pixels = torch.stack([torch.from_numpy(p.pixels.copy()).permute(2, 0, 1) / 127.5 - 1 for p in data.pictures])
    captions = [picture.caption.replace("<TOK>", "cat") for picture in data.pictures]
    encoded = base.tokenizer(captions, padding="max_length", max_length=base.facts.encoders[0].max_length)
    ids = torch.tensor(encoded.input_ids, device=base.device)
    autocast = torch.autocast(base.device.type, torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        chosen = torch.randint(len(captions), (batch_size,))
        with torch.no_grad(), autocast:
            latents = base.vae.encode(pixels[chosen].to(base.device)).latent_dist.sample() * base.facts.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (batch_size,), device=base.device)
        with autocast:
            context = text_encoder(input_ids=ids[chosen]).last_hidden_state
            prediction = unet(base.scheduler.add_noise(latents, noise, timesteps), timesteps, context).sample
        target = noise
        if base.facts.prediction_type == "v_prediction":
            target = base.scheduler.get_velocity(latents, noise, timesteps)
        mse_loss(prediction.float(), target.float()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds_a_step(steps: Sequence[Step], *, count: int, rounds: int, on_gpu: bool) -> list[list[float]]:
    """Let the variants take turns; return each one's seconds (CPU seconds without a GPU) a step, round by round."""
    for step in steps:
        step()
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for index, step in enumerate(steps):
            start = _now(on_gpu)
            for _ in range(count):
                step()
            taken[index].append((_now(on_gpu) - start) / count)
    return taken


def gain(before: Sequence[float], after: Sequence[float], num_concepts: int) -> float:
    """How many times the concept-steps a second that so many concepts in one step make, median over the rounds."""
    return median(num_concepts * one / many for one, many in zip(before, after, strict=True))


def _now(on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peak_megabytes(num_slots: int, batch_size: int) -> float:
    """Peak memory of two steps in a fresh process; 0 slots is the peer."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (num_slots, batch_size))


def _peak(num_slots: int, batch_size: int) -> float:
    torch.set_num_threads(1)
    base = random_base(size="small")
    step = peer_step(base, batch_size) if num_slots == 0 else slots_step(base, num_slots, batch_size)
    for _ in range(2):
        step()
    # not ru_maxrss: Linux hands a parent's peak down to the processes it starts
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


CASES = ((1, "fp32"), (1, "bf16"), (2, "fp32"))
"""Batch size and precision of both sides."""


def cpu_rows(count: int, rounds: int) -> list[Row]:
    """The small base on one CPU thread."""
    variants: list[Step] = []
    for batch_size, precision in CASES:
        variants.append(peer_step(random_base(size="small"), batch_size, precision))
        variants += [slots_step(random_base(size="small"), slots, batch_size, precision) for slots in SLOTS]
    taken = seconds_a_step(variants, count=count, rounds=rounds, on_gpu=False)
    width = 1 + len(SLOTS)
    cases = {case: taken[index * width : (index + 1) * width] for index, case in enumerate(CASES)}
    how = f"small base, one CPU thread, median of {rounds} rounds of {count} steps"
    rows: list[Row] = []
    for (batch_size, precision), (peer, *ours) in cases.items():
        rows += case_rows(f"batch {batch_size}, {precision}", peer, ours, how, has_goal=batch_size == 1)
    best_peer, best_ours = (
        [min(times) for times in zip(*(cases[1, precision][index] for precision in ("fp32", "bf16")), strict=True)]
        for index in (0, -1)
    )
    rows.append(
        Row(
            name="batch 1, each side in its faster precision: 8 slots / peer",
            value=gain(best_peer, best_ours, 8),
            unit="ratio",
            goal=">= 1.8",
            how=how,
        )
    )
    for slots in (0, *SLOTS):
        name = f"peak memory: {_slots(slots) if slots else 'peer'}"
        rows.append(Row(name=name, value=peak_megabytes(slots, 1), unit="MB", how="small base, batch 1, own process"))
    return rows


def case_rows(
    case: str, peer: Sequence[float], ours: Sequence[Sequence[float]], how: str, *, has_goal: bool
) -> list[Row]:
    """Throughput of the peer and of every number of slots, and their ratios."""
    unit = "concept-steps/CPU s"
    rows = [Row(name=f"{case}: peer", value=1 / median(peer), unit=unit, how=how)]
    for slots, seconds in zip(SLOTS, ours, strict=True):
        name = f"{case}: {_slots(slots)}"
        rows.append(Row(name=name, value=slots / median(seconds), unit=unit, how=how))
        if slots > 1:
            rows.append(Row(name=f"{name} / 1 slot", value=gain(ours[0], seconds, slots), unit="ratio", how=how))
    goal = ">= 1.8" if has_goal else ""
    how += "; the peer encodes one prompt a picture, ED-LoRA one a cross-attention layer"
    return [*rows, Row(name=f"{case}: 8 slots / peer", value=gain(peer, ours[-1], 8), unit="ratio", goal=goal, how=how)]


def _slots(number: int) -> str:
    return "1 slot" if number == 1 else f"{number} slots"


def gpu_rows(count: int, rounds: int) -> list[Row]:
    """Full-size shapes in bf16 on a GPU, or rows that say they were not measured."""
    if not torch.cuda.is_available():
        how = "full-size SD 1.5 shapes, random weights, bf16, batch 1; no GPU here"
        return [
            Row(name="GPU: 8 slots / peer", value=None, unit="ratio", goal=">= 2", how=how),
            Row(name="GPU: 8 slots, step / arithmetic floor", value=None, unit="ratio", goal="<= 3", how=how),
        ]
    how = f"full-size SD 1.5 shapes, random weights, bf16, batch 1, median of {rounds} rounds of {count} steps"

    def full() -> BaseModel:
        return random_base(size="full").to(device="cuda")

    shared = full()
    variants = [peer_step(full(), 1, "bf16")]
    variants += [slots_step(shared, slots, 1, "bf16") for slots in SLOTS]
    peer, *ours = seconds_a_step(variants, count=count, rounds=rounds, on_gpu=True)
    rate = matmul_tflops()
    rows = [Row(name="GPU: peer", value=1 / median(peer), unit="concept-steps/s", how=how)]
    for slots, seconds in zip(SLOTS, ours, strict=True):
        rows.append(Row(name=f"GPU: {slots} slots", value=slots / median(seconds), unit="concept-steps/s", how=how))
    floor = 8 * STEP_TFLOP_PER_PICTURE / rate
    rows += [
        Row(name="GPU: 8 slots / peer", value=gain(peer, ours[-1], 8), unit="ratio", goal=">= 2", how=how),
        Row(
            name="GPU: 8 slots, step / arithmetic floor",
            value=median(ours[-1]) / floor,
            unit="ratio",
            goal="<= 3",
            how=f"{how}; floor: {STEP_TFLOP_PER_PICTURE} TFLOP a picture at the {rate:.0f} TFLOP/s of a matmul here",
        ),
        Row(name="GPU: peak memory", value=torch.cuda.max_memory_allocated() / 2**20, unit="MB", how=how),
    ]
    return rows


def matmul_tflops(side: int = 8192) -> float:
    """What this GPU reaches in a large bf16 product, in TFLOP/s."""
    left, right = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    left @ right
    start = _now(True)
    for _ in range(20):
        left @ right
    return 20 * 2 * side**3 / (_now(True) - start) / 1e12


def main() -> None:
    """Measure, print and write benchmarks/results/train.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    write_results("train", [*cpu_rows(options.steps, options.rounds), *gpu_rows(options.steps, options.rounds)])


if __name__ == "__main__":
    main()
