"""Embeddings in signed bytes: how close the cosines stay, and that files are read as they were written."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mos.concept import ConceptRef
from mos.errors import BadInputError, NotFoundError
from registry.client import Details, Registry
from registry.indexer import Indexer
from registry.search import Query
from registry.shards import EMBEDDING_SCHEMA, encode
from registry.similarity import nearest_in, quantise
from tests.registry.world import LICENCE, ColourScorer, any_weights, make_package, write_picture


def test_cosines_of_signed_bytes_are_those_of_the_floats_to_a_hundredth():
    features = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    codes, scales = quantise(features)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    approximate = codes.astype(np.float32) * scales[:, None]
    assert np.abs(approximate @ unit.T - unit @ unit.T).max() < 0.01


def _file(vectors: list[np.ndarray]) -> bytes:
    records = []
    for number, own in enumerate(vectors):
        codes, scales = quantise(own)
        key = {"owner": "o", "concept": f"c-{number:03d}", "version": 1}
        records.append({**key, "dim": own.shape[1], "scales": scales.tolist(), "codes": codes.tobytes()})
    return encode(pa.Table.from_pylist(records, schema=EMBEDDING_SCHEMA))


def test_the_nearest_are_those_a_plain_search_finds():
    rng = np.random.default_rng(1)
    vectors = [rng.normal(size=(1 + number % 3, 32)).astype(np.float32) for number in range(40)]
    query = rng.normal(size=(1, 32)).astype(np.float32)
    query /= np.linalg.norm(query)
    found = nearest_in(_file(vectors), query, 5)
    unit = [own / np.linalg.norm(own, axis=1, keepdims=True) for own in vectors]
    plain = np.asarray([(own @ query[0]).max() for own in unit])
    assert [one.ref.name for one in found] == [f"c-{number:03d}" for number in np.argsort(-plain)[:5]]
    assert np.allclose([one.similarity for one in found], np.sort(plain)[::-1][:5], atol=0.01)
    with pytest.raises(BadInputError, match="another scorer"):
        nearest_in(_file(vectors), query[:, :16], 5)


def _index(registry: Registry, *scorers: ColourScorer) -> None:
    key = registry.home.registry_key(registry.record.registry_id, "indexer")
    Indexer(registry.shelf, key, any_weights, scorers=scorers).run()


def test_pictures_find_their_like_and_what_is_yanked_is_forgotten(registry: Registry, tmp_path: Path):
    key = registry.new_owner("alice")
    for name, colour in {"rose": (250, 0, 0), "sky": (0, 0, 250)}.items():
        preview = write_picture(tmp_path / f"{name}.png", colour)
        package = make_package(name, content=name.encode())
        registry.publish_package(
            package, ConceptRef("alice", name), key, f"run-{name}", LICENCE, Details(previews=[preview])
        )
    with pytest.raises(NotFoundError, match="no embeddings by scorer colours"):
        registry.similar(ColourScorer(), prompts=["red"])
    _index(registry)
    _index(registry, ColourScorer())
    (first, _), (second, _) = registry.similar(ColourScorer(), prompts=["red"])
    assert (first.concept, second.concept) == ("rose", "sky")
    for query in (Query(text="sky"), Query(text="sky", limit=1)):
        assert [row.concept for row, _ in registry.similar(ColourScorer(), prompts=["red"], query=query)] == ["sky"]
    registry.withdraw(ConceptRef("alice", "rose", 1), "yank", key)
    _index(registry)
    assert [row.concept for row, _ in registry.similar(ColourScorer(), prompts=["red"])] == ["sky"]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _huge_png() -> bytes:
    """A picture that says it is 30,000 pixels wide and high."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + _chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "preview", [_huge_png(), _huge_png()[:40], b"\x89PNG\r\n\x1a\n" + bytes(range(200)), b"\xff\xd8\xff" + b"\0" * 99]
)
def test_a_hostile_preview_is_not_embedded_and_does_not_stop_the_indexer(
    registry: Registry, tmp_path: Path, preview: bytes
):
    key = registry.new_owner("alice")
    (tmp_path / "bad.png").write_bytes(preview)
    good = write_picture(tmp_path / "good.png", (250, 0, 0))
    for name, path in {"bad": tmp_path / "bad.png", "good": good}.items():
        registry.publish_package(
            make_package(name, content=name.encode()),
            ConceptRef("alice", name),
            key,
            f"run-{name}",
            LICENCE,
            Details(previews=[path]),
        )
    _index(registry, ColourScorer())
    assert [row.concept for row, _ in registry.similar(ColourScorer(), prompts=["red"])] == ["good"]
