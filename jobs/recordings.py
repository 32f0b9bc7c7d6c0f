"""Where this user's fusions keep their recordings: in the home folder, by the digest of what was fused.

A fused model may come from a stranger. Nothing in its folder says which folders `mos fuse --extend` reads and writes.
"""

import hashlib
from pathlib import Path

from cluster.runs import home
from registry.home import write_atomically


def weights_sha256(out: Path) -> str:
    """Digest of a fused model's weights, in hexadecimal; empty where there are none."""
    path = out / "fused.safetensors"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def note_recordings(out: Path, cache: Path) -> None:
    """Remember that what was recorded for the fused model in `out` is kept in `cache`."""
    note = _note_of(weights_sha256(out))
    note.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(note, str(cache.absolute()).encode())


def recordings_of(out: Path) -> Path | None:
    """Where this user keeps the recordings of the fused model in `out`; None where there are none."""
    digest = weights_sha256(out)
    if not digest or not _note_of(digest).is_file():
        return None
    kept = Path(_note_of(digest).read_text())
    return kept if kept.is_dir() else None


def _note_of(digest: str) -> Path:
    return home() / "recordings" / digest
