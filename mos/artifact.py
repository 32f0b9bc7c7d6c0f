"""One ED-LoRA as one strict safetensors file.

Tensors, all float32: ``<component>.<layer>.lora_A.weight`` [rank, in] and ``.lora_B.weight`` [out, rank]
under the names PEFT and diffusers use (``unet.``, ``text_encoder.text_model.``), and
``edlora.embedding.<encoder>.<word index>`` [cross-attention layers, dim]. Metadata: ``mos.*`` (the card) and
``modelspec.*``. Importing this module and reading a header need no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mos.card import ArtifactCard, all_metadata, whole_card
from mos.concept import ConceptRef
from mos.facts import BaseFacts, tuned_linears
from mos.tensorfile import (
    ArtifactError,
    FileLimits,
    TensorFileHeader,
    header_bytes,
    layout,
    open_regular,
    parse_header,
    read_header,
    write_atomically,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mos.edlora.adapter import Adapter
    from mos.edlora.lora import LowRank

__all__ = [
    "ArtifactCard",
    "ArtifactError",
    "ArtifactHeader",
    "EDLoRA",
    "artifact_bytes",
    "check_norms",
    "read_artifact",
    "read_artifact_header",
    "write_artifact",
]

MAX_DELTA_RATIO = 4.0
"""How large an update's Frobenius norm may be, in norms of the base's layer (a trained one has 0.05 to 1)."""
MAX_EMBEDDING_RATIO = 25.0
"""How large a word's embedding may be, in mean token embeddings of the base."""
MAX_ENTRY = 1e4

_EMBEDDING_KEY = re.compile(r"edlora\.embedding\.(text_encoder(?:_2)?)\.([0-9])")
_LINEAR_KEY = re.compile(r"(unet|text_encoder(?:_2)?)\.([a-z0-9_.]{1,160})\.lora_([AB])\.weight")


@dataclass(frozen=True, kw_only=True)
class ArtifactHeader:
    """A file's card and its tensors' (dtype, shape) by name."""

    card: ArtifactCard
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class EDLoRA:
    """One trained concept.

    Args:
        card: what it says of itself.
        linears: component -> canonical layer name -> update.
        embeddings: text encoder -> [num_words, layers, dim].
    """

    card: ArtifactCard
    linears: Mapping[str, Mapping[str, LowRank]]
    embeddings: Mapping[str, Tensor]

    def adapter(self, ref: ConceptRef) -> Adapter:
        """Put the concept to work under the name it has in a registry; people type ``ref.word``."""
        from mos.edlora.adapter import Adapter, ConceptWords

        words = ConceptWords(
            ref=str(ref),
            word=ref.word,
            words=self.card.words,
            class_word=self.card.class_word,
            embeddings=self.embeddings,
        )
        return Adapter(linears=self.linears, vocabulary=(words,))


def write_artifact(edlora: EDLoRA, path: str | Path) -> str:
    """Write an ED-LoRA; the same content gives the same bytes, and the file appears whole or not at all.

    Returns:
        sha256 of the file, hex.

    Raises:
        ArtifactError: If a tensor is not finite or card and tensors contradict each other.
    """
    return write_atomically(Path(path), artifact_bytes(edlora))


def artifact_bytes(edlora: EDLoRA) -> list[bytes]:
    """Return the file's bytes in pieces: header, then tensors by name.

    Raises:
        ArtifactError: As :func:`write_artifact`.
    """
    tensors = _named_tensors(edlora)
    shapes = {name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    _check_consistent(edlora.card, shapes, Path("artifact"))
    _check_values(tensors, Path("artifact"))
    header = header_bytes(all_metadata(edlora.card), layout(shapes))
    data = [tensors[name].numpy().astype("<f4", copy=False).tobytes() for name in sorted(tensors)]
    return [len(header).to_bytes(8, "little") + header, *data]


def read_artifact_header(path: str | Path) -> ArtifactHeader:
    """Read card and tensor list of an artifact without its tensors, and without torch.

    Raises:
        NotFoundError: If there is no such file.
        ArtifactError: If header or card are malformed.
    """
    return _artifact_header(read_header(Path(path)), Path(path))


def read_artifact(path: str | Path, facts: BaseFacts | None, *, max_delta_ratio: float = MAX_DELTA_RATIO) -> EDLoRA:
    """Read an ED-LoRA, refusing whatever is not exactly one.

    Args:
        path: the file.
        facts: of the base it must fit: fingerprint, exact key set, shapes and norms are checked against
            it. None checks the file in itself only.
        max_delta_ratio: how large an update may be, see `check_norms`.

    Raises:
        NotFoundError: If there is no such file.
        ArtifactError: With the cause.
    """
    path = Path(path)
    with open_regular(path) as file:
        raw = parse_header(file, path, FileLimits())
        header = _artifact_header(raw, path)
        if facts is not None:
            check_fits_base(header, facts, path)
        data = bytearray(file.read())
    tensors = _tensors(data, raw)
    _check_values(tensors, path)
    edlora = _assemble(header.card, tensors)
    if facts is not None:
        check_norms(edlora.linears, [edlora.embeddings], facts, path, max_delta_ratio=max_delta_ratio)
    return edlora


def check_norms(
    linears: Mapping[str, Mapping[str, LowRank]],
    embeddings: Iterable[Mapping[str, Tensor]],
    facts: BaseFacts,
    path: str | Path,
    *,
    max_delta_ratio: float = MAX_DELTA_RATIO,
) -> None:
    """Bound every update and word by the size of what it changes in the base.

    Args:
        linears: component -> canonical name -> update.
        embeddings: of each concept, encoder -> [words, layers, dim].
        facts: of the base.
        path: for the message.
        max_delta_ratio: largest Frobenius norm of an update, in norms of the layer's own weight.

    Raises:
        ArtifactError: With the first that is too large.
    """
    for component, updates in linears.items():
        for name, update in updates.items():
            bound = max_delta_ratio * max(facts.linear_norms[component][name], 0.1)
            if update.norm() > bound:
                raise ArtifactError(
                    f"{path}: update of {component} {name} has norm {update.norm():.3g}, at most {bound:.3g} "
                    f"({max_delta_ratio:g} times the layer's own) is allowed"
                )
    for words in embeddings:
        for encoder, rows in words.items():
            bound = MAX_EMBEDDING_RATIO * facts.encoder(encoder).mean_embedding_norm
            largest = float(rows.norm(dim=-1).max())
            if largest > bound:
                raise ArtifactError(
                    f"{path}: a word embedding of {encoder} has norm {largest:.3g}, at most {bound:.3g} "
                    f"({MAX_EMBEDDING_RATIO:g} times the mean token's) is allowed"
                )


def check_fits_base(header: ArtifactHeader, facts: BaseFacts, path: str | Path) -> None:
    """Check a header against a base: fingerprint, exact tensor names and shapes.

    Raises:
        ArtifactError: With the first difference.
    """
    card = header.card
    for component, digest in sorted(facts.fingerprint.items()):
        if card.base_fingerprint.get(component) != digest:
            raise ArtifactError(
                f"{path}: trained on the base {card.base_name}, whose {component} differs from that of "
                f"{facts.name}; use the base it was trained on"
            )
    expected = expected_tensors(card, facts)
    for name in sorted(expected.keys() | header.tensors.keys()):
        if name not in header.tensors:
            raise ArtifactError(f"{path}: tensor {name} is missing")
        if name not in expected:
            raise ArtifactError(f"{path}: foreign tensor {name}")
        if header.tensors[name][1] != expected[name]:
            raise ArtifactError(
                f"{path}: tensor {name} is {list(header.tensors[name][1])}, {facts.name} needs {list(expected[name])}"
            )


def expected_tensors(card: ArtifactCard, facts: BaseFacts) -> dict[str, tuple[int, ...]]:
    """Name every tensor an artifact with this card must hold for this base, with its shape."""
    expected: dict[str, tuple[int, ...]] = {}
    for component, names in tuned_linears(facts, card.tuned).items():
        for name in names:
            out, into = facts.linear_shapes[component][name]
            prefix = linear_key(component, name)
            expected[f"{prefix}.lora_A.weight"] = (card.rank, into)
            expected[f"{prefix}.lora_B.weight"] = (out, card.rank)
    for encoder in facts.encoders:
        for index in range(len(card.words)):
            shape = (facts.num_cross_attention_layers, encoder.hidden_dim)
            expected[f"edlora.embedding.{encoder.name}.{index}"] = shape
    return expected


def linear_key(component: str, name: str) -> str:
    """Return a layer's key as PEFT and diffusers spell it."""
    return f"unet.{name}" if component == "unet" else f"{component}.text_model.{name}"


def _named_tensors(edlora: EDLoRA) -> dict[str, Tensor]:
    tensors = {}
    for component, updates in edlora.linears.items():
        for name, update in updates.items():
            prefix = linear_key(component, name)
            tensors[f"{prefix}.lora_A.weight"] = update.down
            tensors[f"{prefix}.lora_B.weight"] = update.up
    for encoder, rows in edlora.embeddings.items():
        for index, row in enumerate(rows):
            tensors[f"edlora.embedding.{encoder}.{index}"] = row
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}


def _artifact_header(raw: TensorFileHeader, path: Path) -> ArtifactHeader:
    card = whole_card(raw.metadata, path)
    tensors = {name: (entry.dtype, entry.shape) for name, entry in raw.tensors.items()}
    _check_consistent(card, tensors, path)
    return ArtifactHeader(card=card, tensors=tensors)


def _check_consistent(card: ArtifactCard, tensors: Mapping[str, tuple[str, tuple[int, ...]]], path: Path) -> None:
    """Check names, types and shapes as far as that needs no base."""
    for name, (dtype, shape) in tensors.items():
        linear, embedding = _LINEAR_KEY.fullmatch(name), _EMBEDDING_KEY.fullmatch(name)
        if not linear and not embedding:
            raise ArtifactError(f"{path}: foreign tensor {name[:120]!r}")
        if dtype != "F32":
            raise ArtifactError(f"{path}: tensor {name} is {dtype}, expected F32")
        if len(shape) != 2 or 0 in shape:
            raise ArtifactError(f"{path}: tensor {name} has shape {list(shape)}, expected two sides above 0")
        if linear:
            is_down = linear[3] == "A"
            found = shape[0 if is_down else 1]
            if found != card.rank:
                raise ArtifactError(f"{path}: tensor {name} has rank {found}, its card says {card.rank}")
            partner = name.replace(".lora_A.", ".lora_B.") if is_down else name.replace(".lora_B.", ".lora_A.")
            if partner not in tensors:
                raise ArtifactError(f"{path}: tensor {partner} is missing")
        elif embedding and int(embedding[2]) >= len(card.words):
            raise ArtifactError(f"{path}: tensor {name} embeds word {embedding[2]} of {len(card.words)} words")
    for index in range(len(card.words)):
        if f"edlora.embedding.text_encoder.{index}" not in tensors:
            raise ArtifactError(f"{path}: tensor edlora.embedding.text_encoder.{index} is missing")
    if card.rank and not any(map(_LINEAR_KEY.fullmatch, tensors)):
        raise ArtifactError(f"{path}: rank {card.rank} but no LoRA tensor")


def _check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    import torch

    for name, tensor in tensors.items():
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        if not math.isfinite(largest):
            kind = "NaN" if bool(torch.isnan(tensor).any()) else "infinite"
            raise ArtifactError(f"{path}: tensor {name} has {kind} values")
        if largest > MAX_ENTRY:
            raise ArtifactError(f"{path}: tensor {name} has the value {largest:.3g}, at most {MAX_ENTRY:g} is allowed")


def _tensors(data: bytearray, header: TensorFileHeader) -> dict[str, Tensor]:
    import torch

    return {
        name: torch.frombuffer(data, dtype=torch.float32, count=math.prod(entry.shape), offset=entry.start).view(
            entry.shape
        )
        for name, entry in header.tensors.items()
    }


def _assemble(card: ArtifactCard, tensors: Mapping[str, Tensor]) -> EDLoRA:
    import torch

    from mos.edlora.lora import LowRank

    linears: dict[str, dict[str, LowRank]] = {}
    embeddings: dict[str, list[Tensor]] = {}
    for name in sorted(tensors):
        linear, embedding = _LINEAR_KEY.fullmatch(name), _EMBEDDING_KEY.fullmatch(name)
        if linear and linear[3] == "A":
            layer = linear[2] if linear[1] == "unet" else linear[2].removeprefix("text_model.")
            up = tensors[name.replace(".lora_A.", ".lora_B.")]
            linears.setdefault(linear[1], {})[layer] = LowRank(up=up, down=tensors[name])
        elif embedding:
            embeddings.setdefault(embedding[1], []).append(tensors[name])
    return EDLoRA(
        card=card, linears=linears, embeddings={encoder: torch.stack(rows) for encoder, rows in embeddings.items()}
    )
