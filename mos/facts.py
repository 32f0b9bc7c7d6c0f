"""What is true of a base model, as plain data that needs no torch to read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TUNABLE = (
    "text_encoder.attention",
    "text_encoder.feed_forward",
    "unet.attention",
    "unet.feed_forward",
    "unet.projections",
)
"""The groups of layers a LoRA may tune; ``text_encoder`` stands for every text encoder of the base."""


@dataclass(frozen=True, kw_only=True)
class EncoderFacts:
    """What is true of one text encoder and its tokenizer; ``mean_embedding_norm`` over all token rows."""

    name: str
    hidden_dim: int
    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    max_length: int
    mean_embedding_norm: float


@dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """What is true of a base model, as plain data: no tensors, JSON-able.

    ``linear_shapes`` lists every layer a LoRA may tune (attention, feed-forward, projections) as
    component -> canonical name -> (out, in), ``linear_norms`` their Frobenius norms. ``sample_size`` is the
    latent's side. ``fingerprint`` is one sha256 a component.
    """

    name: str
    family: str
    num_cross_attention_layers: int
    encoders: tuple[EncoderFacts, ...]
    latent_channels: int
    vae_scale_factor: int
    sample_size: int
    scaling_factor: float
    prediction_type: str
    linear_shapes: Mapping[str, Mapping[str, tuple[int, int]]]
    linear_norms: Mapping[str, Mapping[str, float]]
    attention_linears: Mapping[str, tuple[str, ...]]
    fingerprint: Mapping[str, str]

    @property
    def resolution(self) -> int:
        """Side of the pictures the base was trained on, in pixels."""
        return self.sample_size * self.vae_scale_factor

    def encoder(self, name: str) -> EncoderFacts:
        """Return the facts of one text encoder by its component name."""
        return next(encoder for encoder in self.encoders if encoder.name == name)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; :meth:`from_json` reads it back."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "BaseFacts":
        """Rebuild the facts from :meth:`to_json`."""
        fields = dict(data)
        fields["encoders"] = tuple(EncoderFacts(**encoder) for encoder in fields["encoders"])
        fields["linear_shapes"] = {
            component: {name: (int(shape[0]), int(shape[1])) for name, shape in shapes.items()}
            for component, shapes in fields["linear_shapes"].items()
        }
        fields["attention_linears"] = {
            component: tuple(names) for component, names in fields["attention_linears"].items()
        }
        return cls(**fields)


def tuned_linears(facts: BaseFacts, tuned: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """List the layers behind groups of :data:`TUNABLE`: component -> canonical names, in layer order."""
    chosen = {
        component: tuple(name for name in shapes if f"{_kind_of(component)}.{_group_of(name)}" in tuned)
        for component, shapes in facts.linear_shapes.items()
    }
    return {component: names for component, names in chosen.items() if names}


def _kind_of(component: str) -> str:
    return "unet" if component == "unet" else "text_encoder"


def _group_of(name: str) -> str:
    if name.endswith((".proj_in", ".proj_out")):
        return "projections"
    return "feed_forward" if ".ff.net." in name or ".mlp." in name else "attention"
