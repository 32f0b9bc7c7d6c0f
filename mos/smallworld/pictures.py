"""Pictures for training, drawn once and kept in shards; the scene of each is drawn again from its number."""

from pathlib import Path

import numpy as np

from mos.smallworld.render import Scene, render_scene, sample_scene
from mos.smallworld.world import World

SHARD_SIZE = 2048
SUBJECT_COUNTS = (1, 2, 3, 4)
SUBJECT_SHARES = (0.62, 0.22, 0.12, 0.04)


def scene_at(index: int, *, seed: int, world: World) -> Scene:
    """The scene of training picture `index`: the same on every machine, and never a held-out identity."""
    rng = np.random.default_rng([seed, 101, index])
    return sample_scene(rng, world=world, num_subjects=num_subjects_at(index, seed=seed))


def num_subjects_at(index: int, *, seed: int) -> int:
    """How many subjects training picture `index` shows."""
    rng = np.random.default_rng([seed, 102, index])
    return int(rng.choice(SUBJECT_COUNTS, p=SUBJECT_SHARES))


def draw_shard(directory: Path, shard: int, *, seed: int, world: World) -> Path:
    """Draw `SHARD_SIZE` pictures into `shard-NNNN.npy` (uint8 [n, 64, 64, 3]) unless it is there already."""
    path = directory / f"shard-{shard:04d}.npy"
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    first = shard * SHARD_SIZE
    scenes = (scene_at(index, seed=seed, world=world) for index in range(first, first + SHARD_SIZE))
    pictures = np.stack([np.asarray(render_scene(scene, with_masks=False).image) for scene in scenes])
    partial = path.with_suffix(".partial.npy")
    np.save(partial, pictures)
    partial.replace(path)
    return path
