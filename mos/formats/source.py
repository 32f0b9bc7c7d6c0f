"""Opening a file of another tool: safetensors here, pickles in a process of their own."""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mos.errors import BadInputError, NotFoundError

_MOST_BYTES = 4 << 30
_MOST_TENSORS = 20_000
_UNPICKLE = Path(__file__).with_name("unpickle.py")
_TIMEOUT_S = 600
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_FOLDER_FILES = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "learned_embeds.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
    "learned_embeds.bin",
)


class ImportFormatError(BadInputError):
    """Raised when a file of another tool cannot be read or holds nothing that can be used."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignFile:
    """What a file of another tool holds.

    Args:
        path: where it was read from.
        tensors: dotted key -> tensor, on the CPU, as stored.
        words: key of a tensor -> the last part of its path, kept whole (a word may hold dots).
        scalars: dotted key -> text or number beside the tensors.
        metadata: text to text, from the safetensors header or an adapter_config.json beside it.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    words: Mapping[str, str] = field(default_factory=dict)
    scalars: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def open_foreign(path: str | Path) -> ForeignFile:
    """Open a file (or a folder with one) of another tool; what it is comes from its bytes, not its name.

    A PyTorch file is opened with ``weights_only=True`` in a separate, limited process.

    Raises:
        NotFoundError: If there is nothing there.
        ImportFormatError: If it is no such file, is malformed, or asks for too much.
    """
    path = _file_of(Path(path))
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ImportFormatError(f"{path}: {size} bytes, at most {_MOST_BYTES} are read; this is no LoRA")
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(_PICKLE_STARTS):
        return _open_pickle(path)
    if len(start) > 8 and start[8:9] == b"{":
        return _open_safetensors(path)
    raise ImportFormatError(f"{path}: neither safetensors nor a PyTorch file")


def _file_of(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in _FOLDER_FILES if (path / name).is_file()]
        if not found:
            raise NotFoundError(f"{path}: holds none of {', '.join(_FOLDER_FILES)}; name the file itself")
        return found[0]
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    return path


def _open_safetensors(path: Path) -> ForeignFile:
    try:
        with safe_open(path, framework="pt") as file:
            keys = sorted(file.keys())
            if len(keys) > _MOST_TENSORS:
                raise ImportFormatError(f"{path}: {len(keys)} tensors, at most {_MOST_TENSORS} are read")
            metadata = {str(key): str(value) for key, value in (file.metadata() or {}).items()}
            tensors = {key: file.get_tensor(key) for key in keys}
    except SafetensorError as error:
        raise ImportFormatError(f"{path}: not a valid safetensors file: {error}") from error
    config = path.with_name("adapter_config.json")
    if config.is_file() and config.stat().st_size < 1 << 20:
        metadata.setdefault("adapter_config", config.read_text(encoding="utf-8", errors="replace"))
    words = {key: key.removeprefix("new_concept_embedding.") for key in keys}
    return ForeignFile(path=path, tensors=tensors, words=words, metadata=metadata)


def _open_pickle(path: Path) -> ForeignFile:
    with tempfile.TemporaryDirectory(prefix="mos-import-") as folder:
        target = Path(folder) / "tensors.safetensors"
        command = [sys.executable, "-I", str(_UNPICKLE), str(path.resolve()), str(target)]
        try:
            result = subprocess.run(
                command,
                env={"OMP_NUM_THREADS": "1", "HOME": folder},
                cwd=folder,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ImportFormatError(f"{path}: reading it took more than {_TIMEOUT_S} s") from error
        if result.returncode != 0 or not target.is_file():
            reason = result.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit {result.returncode}"]
            raise ImportFormatError(
                f"{path}: refused: {reason[-1][:200]}; only plain tensors are loaded from PyTorch files"
            )
        with safe_open(target, framework="pt") as file:
            content = json.loads(file.metadata()["content"])
            loaded = [file.get_tensor(str(index)).clone() for index in range(len(content["paths"]))]
    keys = [".".join(parts) for parts in content["paths"]]
    if len(set(keys)) != len(keys):
        raise ImportFormatError(f"{path}: two of its tensors have the same dotted name; this is no LoRA")
    return ForeignFile(
        path=path,
        tensors=dict(zip(keys, loaded, strict=True)),
        words={key: parts[-1] for key, parts in zip(keys, content["paths"], strict=True) if parts},
        scalars={".".join(parts): value for parts, value in content["scalars"]},
    )


def adapter_scale(metadata: Mapping[str, str], component: str, rank: int) -> float:
    """Return what a PEFT configuration multiplies an update by: alpha/rank, or alpha/sqrt(rank) for rsLoRA.

    Reads diffusers' ``lora_adapter_metadata`` and a PEFT ``adapter_config.json``; 1 where neither is given.
    Only a configuration without per-layer patterns is taken.

    Raises:
        ImportFormatError: If the configuration is unreadable or uses per-layer patterns or DoRA.
    """
    config = _adapter_config(metadata, component)
    if not config:
        return 1.0
    for unsupported in ("alpha_pattern", "rank_pattern", "use_dora"):
        if config.get(unsupported):
            raise ImportFormatError(f"adapter configuration of {component} uses {unsupported}, which is not supported")
    alpha = config.get("lora_alpha")
    if alpha is None:
        return 1.0
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ImportFormatError(f"adapter configuration of {component} has the alpha {alpha!r}")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _adapter_config(metadata: Mapping[str, str], component: str) -> dict[str, Any]:
    try:
        if "lora_adapter_metadata" in metadata:
            fields = json.loads(metadata["lora_adapter_metadata"])
            return {
                key.removeprefix(f"{component}."): value
                for key, value in fields.items()
                if key.startswith(f"{component}.")
            }
        return dict(json.loads(metadata.get("adapter_config", "{}")))
    except (ValueError, TypeError, AttributeError) as error:
        raise ImportFormatError(f"adapter configuration cannot be read: {error}") from error
