import io
import random
import re
import tracemalloc

import pytest

from benchmarks.fusion_cost import peak_mb, reset_peak
from mos.artifact import ArtifactError, artifact_bytes, read_artifact, read_artifact_header
from tests.mos.malformed import FAMILIES, Sample

MOST_MB = 16
"""Taken by reading them one after another; what they claim to hold goes up to exabytes."""


@pytest.fixture(scope="module")
def sample(tiny_base):
    return Sample(tiny_base)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_malformed_file_is_refused_with_its_cause(tmp_path, tiny_base, sample, family):
    path = tmp_path / "concept.safetensors"
    wrong = []
    cases = list(family(sample))
    held = reset_peak()
    for name, content, cause in cases:
        path.write_bytes(content)
        try:
            read_artifact(path, tiny_base.facts)
        except ArtifactError as error:
            message = str(error)
            if not re.search(cause, message) or "\n" in message or len(message) > 700:
                wrong.append(f"{name}: {message[:200]}")
        else:
            wrong.append(f"{name}: accepted")
    assert not wrong
    assert held is None or peak_mb() - held < MOST_MB


def test_there_are_at_least_three_hundred_different_malformed_files(sample):
    files = {content for family in FAMILIES for _, content, _ in family(sample)}
    assert len(files) >= 300
    assert sample.raw not in files


def test_the_sample_itself_is_accepted(tmp_path, tiny_base, sample):
    path = tmp_path / "concept.safetensors"
    path.write_bytes(sample.raw)
    assert b"".join(artifact_bytes(read_artifact(path, tiny_base.facts))) == sample.raw


def test_ten_thousand_random_mutations_never_crash_the_reader(tmp_path, tiny_base, sample):
    """A mutated file is refused as an artifact, or it is the one byte form of what was read from it."""
    rng = random.Random(20262)
    path = tmp_path / "concept.safetensors"
    accepted = refused = 0
    with path.open("w+b", buffering=0) as file:
        file.write(sample.raw)
        for _ in range(10_000):
            undo = mutate(file, sample.raw, rng)
            try:
                edlora = read_artifact(path, tiny_base.facts)
            except ArtifactError:
                refused += 1
            else:
                accepted += 1
                if accepted % 50 == 0:
                    file.seek(0)
                    assert b"".join(artifact_bytes(edlora)) == file.read()
            undo()
    assert accepted + refused == 10_000
    assert refused > 5_000
    assert accepted > 100


def mutate(file: io.FileIO, raw: bytes, rng: random.Random):
    """Change a few bytes or the length of an open file; returns what puts the file right again."""
    header = 8 + int.from_bytes(raw[:8], "little")
    kind = rng.randrange(10)
    if kind == 0:
        file.truncate(rng.randrange(len(raw)))
        return lambda: (file.seek(0), file.write(raw))
    if kind == 1:
        file.seek(len(raw))
        file.write(rng.randbytes(rng.randrange(1, 64)))
        return lambda: file.truncate(len(raw))
    start = rng.randrange(header) if kind < 9 else rng.randrange(header, len(raw))
    size = min(rng.choice((1, 1, 1, 2, 4, 8)), len(raw) - start)
    flips = (
        rng.randbytes(size) if kind < 6 else bytes(raw[start + index] ^ 1 << rng.randrange(8) for index in range(size))
    )
    file.seek(start)
    file.write(flips)
    return lambda: (file.seek(start), file.write(raw[start : start + size]))


def test_a_huge_file_is_refused_without_being_read(tmp_path, tiny_base):
    path = tmp_path / "concept.safetensors"
    with path.open("wb") as file:
        file.write((1 << 19).to_bytes(8, "little") + b"{")
        file.truncate(4 << 30)
    tracemalloc.start()
    with pytest.raises(ArtifactError, match="at most 536870912 are read"):
        read_artifact(path, tiny_base.facts)
    with path.open("r+b") as file:
        file.truncate(500 << 20)
    with pytest.raises(ArtifactError, match="JSON"):
        read_artifact_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_folders_and_pipes_are_refused(tmp_path):
    import os

    with pytest.raises(ArtifactError, match="regular file"):
        read_artifact(tmp_path, None)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="regular file"):
        read_artifact(tmp_path / "pipe", None)
