"""Keeps single concepts' statistics on disk, so that memory holds one at a time and a later fusion finds them again."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mos.base_model import BaseModel
from mos.edlora.adapter import Adapter
from mos.fusion.config import FusionConfig, StageName
from mos.fusion.source import FusionSource
from mos.fusion.stages import Stage, stage_prompts
from mos.fusion.statistics import SiteStatistics, StageStatistics
from mos.tensorfile import write_atomically

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class StoredStatistics:
    """One concept's statistics of a stage, read site by site.

    Attributes:
        path: Their file.
        num_rows: Recorded rows by site.
        seconds: CPU seconds the recording took.
    """

    path: Path
    num_rows: Mapping[str, int]
    seconds: float = 0.0

    def sites(self) -> list[str]:
        """Names of the fitted sites."""
        return [name.removeprefix("fit:") for name in self.num_rows if name.startswith("fit:")]

    def site(self, name: str) -> SiteStatistics:
        """Read one fitted site."""
        return self._read(f"fit:{name}")

    def held_out(self, name: str) -> SiteStatistics | None:
        """Read one held-out site, or None if none was recorded."""
        key = f"held-out:{name}"
        return self._read(key) if key in self.num_rows else None

    def _read(self, key: str) -> SiteStatistics:
        with safe_open(self.path, framework="numpy") as file:
            gram = file.get_tensor(key)
        return SiteStatistics(gram=gram, num_rows=self.num_rows[key])


class StatisticsStore:
    """A directory of statistics by key; a key says everything they depend on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def put(self, key: str, statistics: StageStatistics) -> StoredStatistics:
        """Write statistics whole or not at all, and return the handle to read them back.

        Raises:
            FusionError: If they are not finite; nothing is written then.
        """
        statistics.check()
        found = {f"fit:{name}": site for name, site in statistics.sites.items()}
        found |= {f"held-out:{name}": site for name, site in statistics.held_out.items()}
        rows = {name: site.num_rows for name, site in found.items()}
        arrays = {name: np.ascontiguousarray(site.gram) for name, site in found.items()}
        seconds = statistics.seconds
        metadata = {"rows": json.dumps(rows, sort_keys=True), "format": str(FORMAT), "seconds": f"{seconds:.3f}"}
        write_atomically(self._path(key), [save(arrays, metadata=metadata)])
        return StoredStatistics(path=self._path(key), num_rows=rows, seconds=seconds)

    def find(self, key: str) -> StoredStatistics | None:
        """The handle of statistics written before, or None; an unreadable file counts as none."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                names = set(file.keys())
            rows = {str(name): int(count) for name, count in json.loads(metadata["rows"]).items()}
            seconds = float(metadata["seconds"])
        except (SafetensorError, OSError, KeyError, ValueError):
            return None
        return StoredStatistics(path=path, num_rows=rows, seconds=seconds) if set(rows) == names else None

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}.safetensors"


def statistics_key(
    stage: Stage, base: BaseModel, source: FusionSource | None, upstream: str, config: FusionConfig
) -> str:
    """Digest of everything one concept's statistics in one stage depend on, hex."""
    is_spatial = stage.name is StageName.SPATIAL
    facts = {
        "format": FORMAT,
        "stage": str(stage.name),
        "sites": [[component, *sorted(sites)] for component, sites in sorted(stage.sites.items())],
        "base": dict(base.facts.fingerprint),
        "dtype": str(base.dtype),
        "device": base.device.type,
        "concept": "" if source is None else source.content_digest(),
        "upstream": upstream,
        "prompts": stage_prompts(stage.name, config, is_generic=source is None),
        "threads": config.threads,
        "drawing": [config.latent_seeds, config.held_out_seeds, config.sampling_steps] if is_spatial else [],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def adapter_digest(adapter: Adapter) -> str:
    """sha256 over an adapter's tensors and words, hex."""
    digest = hashlib.sha256()
    for component, updates in sorted(adapter.linears.items()):
        for name, update in sorted(updates.items()):
            digest.update(f"{component}/{name}:{tuple(update.up.shape)}{tuple(update.down.shape)}".encode())
            digest.update(update.up.contiguous().numpy().data)
            digest.update(update.down.contiguous().numpy().data)
    for concept in adapter.vocabulary:
        digest.update(f"{concept.word}{concept.words}".encode())
        for encoder, rows in sorted(concept.embeddings.items()):
            digest.update(encoder.encode())
            digest.update(rows.detach().contiguous().numpy().data)
    return digest.hexdigest()


@contextmanager
def opened_store(directory: Path | None) -> Iterator[StatisticsStore]:
    """A store in `directory`, or in a temporary one that is gone afterwards."""
    import tempfile

    if directory is not None:
        yield StatisticsStore(directory)
        return
    with tempfile.TemporaryDirectory(prefix="mos-fusion-") as temporary:
        yield StatisticsStore(Path(temporary))
