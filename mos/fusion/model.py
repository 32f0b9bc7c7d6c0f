"""A fused model on disk: `fused.safetensors` (LoRA and layer embeddings) and `fused.json` (where it comes from)."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mos.artifact import ArtifactError, linear_key
from mos.concept import ConceptRef
from mos.edlora.adapter import Adapter, ConceptWords
from mos.edlora.lora import LowRank
from mos.errors import BadInputError, NotFoundError
from mos.facts import BaseFacts
from mos.fusion.config import FusionConfig
from mos.fusion.errors import BaseMismatchError
from mos.fusion.source import FusionSource
from mos.tensorfile import FileLimits, header_bytes, layout, open_regular, parse_header, write_atomically

FORMAT_VERSION = 1
WEIGHTS, RECORD = "fused.safetensors", "fused.json"
_LIMITS = FileLimits(
    header_bytes=16 << 20, metadata_bytes=1 << 20, num_tensors=100_000, file_bytes=16 << 30
)  # scales with the number of concepts
_RECORD_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """Where one concept of a fusion came from.

    Attributes:
        ref: `owner/name@version`.
        sha256: Of the artifact file; "" where the concept came from memory.
        content: Digest of words, weights and scales as they were fused.
        scales: Factor by component.
        word: What people type, "" where the concept brings no embeddings.
    """

    ref: str
    sha256: str
    content: str
    scales: Mapping[str, float]
    word: str

    @classmethod
    def of(cls, source: FusionSource) -> "SourceRecord":
        """The record of a source."""
        return cls(
            ref=source.name,
            sha256=source.sha256,
            content=source.content_digest(),
            scales={name: float(value) for name, value in sorted(source.scales.items())},
            word=source.ref.word if source.edlora.embeddings else "",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class FusedModel:
    """The result of a fusion.

    Attributes:
        adapter: What sampling and evaluation use.
        sources: The concepts, by name.
        config: How they were fused.
        base_name: For people.
        base_fingerprint: Component -> sha256.
        report: Per stage, concept and layer: fit, held-out error, drift; what was clipped.
        times: Seconds by stage, `spared_seconds` the CPU seconds that recordings found in the cache once took;
            not written, so that equal inputs give equal bytes.
    """

    adapter: Adapter
    sources: tuple[SourceRecord, ...]
    config: FusionConfig
    base_name: str
    base_fingerprint: Mapping[str, str]
    report: Mapping[str, Any]
    times: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """What people type for the concepts."""
        return self.adapter.words


def write_fused(model: FusedModel, directory: str | Path) -> Path:
    """Write a fused model into a directory (made if need be); equal models give equal bytes.

    The record is written last and holds the digest of the weights, so a torn write is found when it is read.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = _named_tensors(model.adapter)
    shapes = {name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    header = header_bytes({"mos.fused_format": str(FORMAT_VERSION)}, layout(shapes))
    chunks = (tensors[name].numpy().astype("<f4", copy=False).tobytes() for name in sorted(tensors))
    digest = write_atomically(directory / WEIGHTS, [len(header).to_bytes(8, "little") + header, *chunks])
    record = json.dumps(_record(model, digest), indent=1, sort_keys=True, ensure_ascii=True) + "\n"
    write_atomically(directory / RECORD, [record.encode("ascii")])
    return directory


def read_fused_record(directory: str | Path) -> dict[str, Any]:
    """Read what a fused model says of itself, without its weights.

    Raises:
        NotFoundError: If there is no fused model in the directory.
        ArtifactError: If its record is malformed or newer than this reader.
    """
    path = Path(directory) / RECORD
    if not path.is_file():
        raise NotFoundError(f"{directory}: no fused model here ({RECORD} is missing); make one with mos fuse")
    if path.stat().st_size > _RECORD_BYTES:
        raise ArtifactError(f"{path}: {path.stat().st_size} bytes, at most {_RECORD_BYTES} are read")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = int(record["format"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read as the record of a fused model ({error})") from error
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: written by a newer mos (format {version}, this one reads {FORMAT_VERSION}); "
            "pip install --upgrade mos"
        )
    return dict(record)


def extended_refs(record: Mapping[str, Any], add: Sequence[str], remove: Sequence[str]) -> tuple[str, ...]:
    """The concepts of a fused model after adding and removing some, as `owner/name[@version]` in order.

    An added concept replaces an older version of itself; a removed one may be named without its version.

    Args:
        record: What `read_fused_record` returned.
        add: Concepts to fuse as well.
        remove: Concepts to leave out.

    Raises:
        NotFoundError: If a concept to remove is not in the model.
        BadInputError: If nothing is left.
    """
    sources = record.get("sources", [])
    found = {str(ConceptRef.parse(item["ref"]).at(1)): str(item["ref"]) for item in sources}
    for text in remove:
        ref = ConceptRef.parse(text)
        key = str(ref.at(1))
        if key not in found or (ref.version is not None and found[key] != text):
            raise NotFoundError(f"{text}: not in the fused model, which holds {', '.join(sorted(found.values()))}")
        del found[key]
    found |= {str(ConceptRef.parse(text).at(1)): text for text in add}
    if not found:
        raise BadInputError("nothing would be left of the fused model; remove fewer concepts")
    return tuple(sorted(found.values()))


def read_fused(directory: str | Path, facts: BaseFacts | None) -> FusedModel:
    """Read a fused model, refusing what is not exactly one.

    Args:
        directory: Where `write_fused` wrote it.
        facts: Of the base it will run on; None skips the comparison.

    Raises:
        NotFoundError: If there is none.
        ArtifactError: If a file is malformed, torn, or has other layers or shapes than the base.
        BaseMismatchError: If it was fused on another base.
    """
    directory = Path(directory)
    record = read_fused_record(directory)
    if facts is not None:
        _check_base(record, facts, directory)
    tensors = _read_tensors(directory / WEIGHTS, str(record.get("weights_sha256", "")))
    try:
        model = _assemble(record, tensors)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{directory}: {RECORD} and {WEIGHTS} do not belong together ({error})") from error
    if facts is not None:
        _check_shapes(model.adapter, facts, directory)
    return model


def _record(model: FusedModel, digest: str) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "weights_sha256": digest,
        "base": {"name": model.base_name, "fingerprint": dict(model.base_fingerprint)},
        "concepts": [
            {"ref": concept.ref, "word": concept.word, "words": list(concept.words), "class_word": concept.class_word}
            for concept in model.adapter.vocabulary
        ],
        "sources": [
            {
                "ref": source.ref,
                "sha256": source.sha256,
                "content": source.content,
                "scales": dict(source.scales),
                "word": source.word,
            }
            for source in model.sources
        ],
        "config": model.config.to_json(),
        "report": dict(model.report),
    }


def _named_tensors(adapter: Adapter) -> dict[str, Tensor]:
    tensors = {}
    for component, updates in adapter.linears.items():
        for name, update in updates.items():
            tensors[f"{linear_key(component, name)}.lora_A.weight"] = update.down
            tensors[f"{linear_key(component, name)}.lora_B.weight"] = update.up
    for index, concept in enumerate(adapter.vocabulary):
        for encoder, rows in concept.embeddings.items():
            tensors[f"edlora.embedding.{encoder}.{index}"] = rows
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}


def _read_tensors(path: Path, expected: str) -> dict[str, Tensor]:
    with open_regular(path) as file:
        header = parse_header(file, path, _LIMITS)
        data = bytearray(file.read())
        file.seek(0)
        digest = hashlib.sha256(file.read(header.data_offset))
    digest.update(data)
    found = digest.hexdigest()
    if found != expected:
        raise ArtifactError(f"{path}: its sha256 is {found[:12]}, {RECORD} says {expected[:12]}; fuse again")
    tensors = {}
    for name, entry in header.tensors.items():
        if entry.dtype != "F32":
            raise ArtifactError(f"{path}: tensor {name[:120]!r} is {entry.dtype}, expected F32")
        count = math.prod(entry.shape)
        flat = torch.frombuffer(data, dtype=torch.float32, count=count, offset=entry.start) if count else torch.empty(0)
        tensors[name] = flat.view(entry.shape)
        if not tensors[name].isfinite().all():
            raise ArtifactError(f"{path}: tensor {name[:120]!r} is not finite; fuse again")
    return tensors


def _assemble(record: Mapping[str, Any], tensors: dict[str, Tensor]) -> FusedModel:
    linears: dict[str, dict[str, LowRank]] = {}
    embeddings: list[dict[str, Tensor]] = [{} for _ in record["concepts"]]
    for name, tensor in tensors.items():
        if name.startswith("edlora.embedding."):
            _, _, encoder, index = name.split(".")
            embeddings[int(index)][encoder] = tensor
        elif name.endswith(".lora_A.weight"):
            component, layer = _component_and_layer(name.removesuffix(".lora_A.weight"))
            up = tensors[name.replace(".lora_A.", ".lora_B.")]
            linears.setdefault(component, {})[layer] = LowRank(up=up, down=tensor)
        elif name.replace(".lora_B.", ".lora_A.") not in tensors:
            raise KeyError(name)
    vocabulary = tuple(
        ConceptWords(
            ref=str(item["ref"]),
            word=str(item["word"]),
            words=tuple(map(str, item["words"])),
            class_word=str(item["class_word"]),
            embeddings=rows,
        )
        for item, rows in zip(record["concepts"], embeddings, strict=True)
    )
    return FusedModel(
        adapter=Adapter(linears=linears, vocabulary=vocabulary),
        sources=tuple(SourceRecord(**item) for item in record["sources"]),
        config=FusionConfig.from_json(record["config"]),
        base_name=str(record["base"]["name"]),
        base_fingerprint=dict(record["base"]["fingerprint"]),
        report=dict(record["report"]),
    )


def _component_and_layer(key: str) -> tuple[str, str]:
    component, _, layer = key.partition(".")
    return component, layer if component == "unet" else layer.removeprefix("text_model.")


def _check_base(record: Mapping[str, Any], facts: BaseFacts, directory: Path) -> None:
    try:
        name, fused_on = str(record["base"]["name"]), dict(record["base"]["fingerprint"])
    except (LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{directory}: {RECORD} names no base; fuse again") from error
    differing = [part for part, digest in sorted(facts.fingerprint.items()) if fused_on.get(part) != digest]
    if differing:
        raise BaseMismatchError(
            f"{directory}: fused on {name}, whose {' and '.join(differing)} differ from those of "
            f"{facts.name}; give the base it was fused on with --base"
        )


def _check_shapes(adapter: Adapter, facts: BaseFacts, directory: Path) -> None:
    for component, updates in adapter.linears.items():
        shapes = facts.linear_shapes.get(component, {})
        for name, update in updates.items():
            if tuple(shapes.get(name, ())) != update.shape:
                raise ArtifactError(
                    f"{directory}: its update of {component} {name} is {list(update.shape)}, "
                    f"{facts.name} has {list(shapes.get(name, ())) or 'no such layer'}"
                )
    for concept in adapter.vocabulary:
        for encoder in facts.encoders:
            rows = concept.embeddings.get(encoder.name)
            expected = (len(concept.words), facts.num_cross_attention_layers, encoder.hidden_dim)
            if rows is None or tuple(rows.shape) != expected:
                raise ArtifactError(f"{directory}: {concept.word} has no {list(expected)} embeddings of {encoder.name}")
