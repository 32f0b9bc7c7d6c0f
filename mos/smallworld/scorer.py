"""The scorer: a small CLIP trained on captions and on telling individuals apart."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig

from mos.smallworld.architecture import WIDTH, text_config
from mos.smallworld.captions import caption_scene
from mos.smallworld.render import Scene, compose_scene, render_scene
from mos.smallworld.run_files import log_line
from mos.smallworld.tokenizer import MAX_TOKENS, build_tokenizer
from mos.smallworld.world import World, sample_identity


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """Recipe of the scorer.

    Attributes:
        steps: Steps of `batch` individuals, two pictures each.
        batch: Individuals a step.
        lr: Peak rate of a one-cycle AdamW.
        individuals: How many individuals are drawn, evenly over the classes.
        views: Pictures of each.
        identity_weight: Weight of the term that makes two pictures of one individual a pair.
        class_share: Share of the steps whose individuals are all of one class.
    """

    steps: int = 6900
    batch: int = 40
    lr: float = 1.5e-3
    individuals: int = 6400
    views: int = 3
    identity_weight: float = 1.0
    class_share: float = 0.8


def build_scorer(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIPModel for 64x64 pictures; its text tower has the shape of the base's text encoder."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        projection_dim=WIDTH,
    )
    return CLIPModel(
        CLIPConfig(text_config=text_config(tokenizer).to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
    )


def train_scorer(
    directory: Path,
    world: World,
    config: ScorerConfig,
    *,
    seed: int,
    device: str = "cpu",
    from_weights: Path | None = None,
) -> Path:
    """Train into `directory/scorer` (a CLIPModel with tokenizer and image processor, half precision).

    `from_weights` is a scorer to go on from instead of noise; another seed shows it other individuals.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_scorer(tokenizer)
    if from_weights is not None:
        model.load_state_dict(CLIPModel.from_pretrained(from_weights, dtype=torch.float32).state_dict())
    model.to(device)
    pictures, scenes = _draw_individuals(world, config, seed)
    rng = np.random.default_rng([seed, 106])
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps, pct_start=0.15)
    started = time.monotonic()
    for step in range(config.steps):
        people = _choose_individuals(rng, config, len(world.classes))
        views = np.array([rng.permutation(config.views)[:2] for _ in people])
        images = torch.from_numpy(np.concatenate([pictures[people, views[:, 0]], pictures[people, views[:, 1]]]))
        captions = [caption_scene(scenes[who][view], rng) for who, view in zip(people, views[:, 0], strict=True)]
        tokens = tokenizer(captions, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = _loss(model, images.to(device), tokens.input_ids.to(device), config)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.logit_scale.data.clamp_(max=4.0)
        if (step + 1) % 50 == 0:
            line = {
                "step": step + 1,
                "loss": round(float(loss.detach()), 4),
                "seconds": round(time.monotonic() - started),
            }
            log_line(directory / "scorer.jsonl", line)
    return save_scorer(model, tokenizer, directory / "scorer")


def save_scorer(model: CLIPModel, tokenizer: CLIPTokenizer, directory: Path) -> Path:
    """Write model, tokenizer and image processor in the layout of transformers; returns the directory."""
    from transformers import CLIPImageProcessor

    model.half().save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    side = {"height": 64, "width": 64}
    CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(directory)
    return directory


def _loss(model: CLIPModel, images: torch.Tensor, token_ids: torch.Tensor, config: ScorerConfig) -> torch.Tensor:
    """Captions against pictures, and pictures against pictures of the same individual, both contrastive.

    Args:
        model: In training.
        images: uint8 [2 n, 64, 64, 3]; row i and row n + i show one individual.
        token_ids: [n, tokens]; caption i belongs to picture i.
        config: Gives the weight of the second.
    """
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    vision = model.vision_model(pixel_values=pixels)
    image = F.normalize(model.visual_projection(vision.pooler_output).float(), dim=-1)
    text_output = model.text_model(input_ids=token_ids)
    text = F.normalize(model.text_projection(text_output.pooler_output).float(), dim=-1)
    count = len(token_ids)
    scale = model.logit_scale.exp()
    targets = torch.arange(count, device=image.device)
    described = scale * text @ image[:count].T
    loss = (F.cross_entropy(described, targets) + F.cross_entropy(described.T, targets)) / 2
    alike = scale * image[:count] @ image[count:].T
    identity = (F.cross_entropy(alike, targets) + F.cross_entropy(alike.T, targets)) / 2
    total: torch.Tensor = loss + config.identity_weight * identity
    return total


def _choose_individuals(rng: np.random.Generator, config: ScorerConfig, num_classes: int) -> np.ndarray:
    if rng.random() >= config.class_share:
        return rng.permutation(config.individuals)[: config.batch]
    of_class = np.arange(int(rng.integers(num_classes)), config.individuals, num_classes)
    return rng.permutation(of_class)[: config.batch]


def _draw_individuals(world: World, config: ScorerConfig, seed: int) -> tuple[np.ndarray, list[list[Scene]]]:
    rng = np.random.default_rng([seed, 105])
    pictures, scenes = [], []
    for who in range(config.individuals):
        identity = sample_identity(rng, world=world, class_name=world.classes[who % len(world.classes)])
        rows = []
        for _ in range(config.views):
            backdrop = world.backdrops[int(rng.integers(len(world.backdrops)))]
            rows.append(compose_scene(rng, [identity], backdrop, world=world, single_size=(28.0, 48.0)))
        scenes.append(rows)
        pictures.append([np.asarray(render_scene(scene, with_masks=False).image) for scene in rows])
    return np.asarray(pictures), scenes
