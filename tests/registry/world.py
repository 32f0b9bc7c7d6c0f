"""Small true things to publish, a clock to turn, and a store that lives in memory."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mos.facts import BaseFacts, EncoderFacts
from registry.documents import sha256_hex
from registry.errors import ObjectExistsError, ObjectMissingError
from registry.layout import Stored, check_key
from registry.licence import Licence
from registry.manifest import Manifest
from registry.objects import selftest
from registry.records import Limits
from registry.weights import Package

EPOCH = 1_790_000_000.0
DIM = 8


class Clock:
    """Unix seconds that move only when told."""

    def __init__(self, now_s: float = EPOCH) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class MemoryStore:
    """An object store in a dictionary; implements `ObjectStore`."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        self._clock = clock or Clock()
        self.url = f"memory-{id(self)}"

    def create(self, key: str, data: bytes) -> None:
        if check_key(key) in self.objects:
            raise ObjectExistsError(f"{key}: already there")
        self.objects[key] = (data, self._clock())

    def put(self, key: str, data: bytes) -> None:
        self.objects[check_key(key)] = (data, self._clock())

    def put_all(self, objects: Mapping[str, bytes], *, present: Collection[str] = ()) -> None:
        for key, data in objects.items():
            self.put(key, data)

    def get(self, key: str, *, at_most: int | None = None) -> bytes:
        try:
            return self.objects[check_key(key)][0][:at_most]
        except KeyError as error:
            raise ObjectMissingError(f"{key}: no such object") from error

    def head(self, key: str) -> Stored | None:
        found = self.objects.get(check_key(key))
        return None if found is None else Stored(key, len(found[0]), found[1])

    def list(self, prefix: str, after: str = "") -> Iterator[Stored]:
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > after:
                yield Stored(key, len(self.objects[key][0]), self.objects[key][1])

    def delete(self, key: str) -> None:
        self.objects.pop(check_key(key), None)

    def check_conditional_writes(self, prefix: str) -> None:
        selftest.check_conditional_writes(self, prefix)


def tiny_facts() -> BaseFacts:
    """Facts of a base with three attention layers a component: nothing but plain data."""
    shapes = {
        "text_encoder": {f"encoder.layers.0.self_attn.{part}_proj": (DIM, DIM) for part in "qkv"},
        "unet": {f"mid_block.attentions.0.transformer_blocks.0.attn2.to_{part}": (DIM, DIM) for part in "qkv"},
    }
    return BaseFacts(
        name="tiny",
        family="sd1",
        num_cross_attention_layers=2,
        encoders=(
            EncoderFacts(
                name="text_encoder",
                hidden_dim=DIM,
                vocab_size=100,
                bos_id=0,
                eos_id=1,
                pad_id=1,
                max_length=16,
                mean_embedding_norm=1.0,
            ),
        ),
        latent_channels=4,
        vae_scale_factor=8,
        sample_size=8,
        scaling_factor=1.0,
        prediction_type="epsilon",
        linear_shapes=shapes,
        linear_norms={component: dict.fromkeys(names, 1.0) for component, names in shapes.items()},
        attention_linears={component: tuple(names) for component, names in shapes.items()},
        fingerprint={name: hashlib.sha256(name.encode()).hexdigest() for name in shapes},
    )


def make_edlora(facts: BaseFacts, *, name: str = "robot", seed: int = 0, scale: float = 0.1, **card: Any) -> Any:
    """An ED-LoRA of random numbers that fits `facts`."""
    import torch

    from mos.artifact import ArtifactCard, EDLoRA
    from mos.edlora.lora import LowRank

    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> "torch.Tensor":
        return scale * torch.randn(*shape, generator=generator)

    values: dict[str, Any] = {
        "words": (f"<{name}-rand>", f"<{name}-class>"),
        "class_word": "robot",
        "kind": "object",
        "base_name": facts.name,
        "family": facts.family,
        "base_fingerprint": dict(facts.fingerprint),
        "rank": 2,
        "tuned": ("text_encoder.attention", "unet.attention"),
        "seed": seed,
        "title": f"A {name}",
    }
    linears = {
        component: {layer: LowRank(up=numbers(out, 2), down=numbers(2, into)) for layer, (out, into) in shapes.items()}
        for component, shapes in facts.linear_shapes.items()
    }
    return EDLoRA(
        card=ArtifactCard(**{**values, **card}),
        linears=linears,
        embeddings={"text_encoder": numbers(2, facts.num_cross_attention_layers, DIM)},
    )


def make_package(name: str = "robot", *, content: bytes = b"weights", **changes: Any) -> Package:
    """A package whose weights are any bytes, for tests that do not look into weights."""
    values: dict[str, Any] = {
        "kind": "concept",
        "files": {"weights": content},
        "base_name": "tiny",
        "base_family": "sd1",
        "base_fingerprint": {"unet": sha256_hex(b"unet"), "text_encoder": sha256_hex(b"text")},
        "words": (f"<{name}-rand>", f"<{name}-class>"),
        "class_word": "robot",
        "concept_kind": "object",
        "rank": 2,
        "recipe": {"steps": "3"},
        "title": f"A {name}",
    }
    return Package(**{**values, **changes})


def any_weights(manifest: Manifest, files: Mapping[str, bytes], limits: Limits) -> Sequence[str]:
    """An artifact check that passes whatever is whole; implements `ArtifactCheck`."""
    return ("any",)


LICENCE = Licence.named("cc-by-4.0")


def write_picture(path: Path, colour: tuple[int, int, int]) -> Path:
    """A small PNG of one colour."""
    from PIL import Image

    Image.new("RGB", (16, 16), colour).save(path)
    return path


_COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class ColourScorer:
    """A scorer whose features are a picture's mean colour and a prompt's colour word."""

    name = "colours"

    def image_features(self, images: Sequence[Any]) -> Any:
        return np.stack([np.asarray(image.convert("RGB"), np.float32).mean(axis=(0, 1)) / 255 for image in images])

    def text_features(self, prompts: Sequence[str]) -> Any:
        return np.asarray(
            [np.sum([_COLOURS.get(word, (0, 0, 0)) for word in prompt.split()], axis=0) for prompt in prompts],
            np.float32,
        )
