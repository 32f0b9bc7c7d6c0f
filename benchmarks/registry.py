"""The registry's costs in one run: publishing, resolving, indexing, searching, beside MLflow's model registry.

`make bench-registry`, or `python -m benchmarks.registry [--quick] [--max-rows 1000000]`. The S3 server is
moto's, in a process of its own, unless AWS_ENDPOINT_URL_S3 already names one (with a bucket `bench`).
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.registry_workers import TAGS, Load, has_mlflow, measure, mlflow_client, mlflow_publisher, mos_publisher
from benchmarks.results_file import Row, write_results
from mos.concept import ConceptRef
from registry.client import Registry
from registry.documents import sha256_hex
from registry.indexer import Indexer
from registry.search import Query, run_query
from registry.shards import EMBEDDING_SCHEMA, MAX_SHARD_ROWS, ROW_SCHEMA, encode, read_table
from registry.similarity import nearest_in, quantise, top

ARTIFACT_BYTES = 65_536
REPEATS = 5
TURNS = 3
"""How often publishing here and in MLflow is measured, one after the other."""


def cpu_of(action: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median CPU seconds of this process for an action, after one warm-up."""
    spent = []
    for _ in range(repeats + 1):
        before = time.process_time()
        action()
        spent.append(time.process_time() - before)
    return median(spent[1:])


def founded(url: str, folder: Path) -> Registry:
    """A new registry with eight owners."""
    registry = Registry.open(url, create=True, home=folder / "home")
    for number in range(8):
        registry.new_owner(f"owner-{number}")
    return registry


def index(registry: Registry, scope: Any = "hints") -> None:
    """Index without looking into weights: the cost of the catalogue alone."""
    key = registry.home.registry_key(registry.record.registry_id, "indexer")
    Indexer(registry.shelf, key, lambda *_: ("benchmark",)).run(scope)


def publishing(place: str, url: str, folder: Path, num: int) -> list[Row]:
    """Latency and throughput at 1, 8 and 32 publishers."""
    founded(url, folder)
    rows = []
    for workers in (1, 8, 32):
        each = max(num // workers, 2)
        load = measure(mos_publisher, (url, str(folder / "home"), f"w{workers}", ARTIFACT_BYTES), workers, each)
        how = f"{workers} processes, {each} concepts each, 64 KiB weights"
        case = f"publish, {place}, {workers} publishers"
        rows += [
            Row(name=f"{case}: throughput", value=load.per_second, unit="1/s", how=how),
            Row(name=f"{case}: median latency", value=1000 * load.median_s, unit="ms", how=how),
            Row(name=f"{case}: CPU each", value=load.cpu_s, unit="CPU s", how=how),
        ]
        goal = "== 0" if workers == 32 else ""
        rows.append(Row(name=f"{case}: failures", value=float(load.failures), unit="count", goal=goal, how=how))
    return rows


def mlflow_rows(folder: Path, num_models: int) -> list[Row]:
    """MLflow on sqlite: the same registrations by 8 processes as here, in turns, then a search among them.

    In turns, because the speed of a machine and its disk changes from one minute to the next.
    """
    names = ("publish, directory / MLflow, 8 publishers", "search at 1,000 models, MLflow / ours")
    if not has_mlflow():
        how = "not measured: MLflow is not installed"
        return [Row(name=names[0], value=None, unit="ratio", goal=">= 5", how=how),
                Row(name=names[1], value=None, unit="ratio", goal=">= 10", how=how)]  # fmt: skip
    uri, url = f"sqlite:///{folder}/mlflow.db", str(folder / "beside-mlflow")
    client = mlflow_client(uri)
    client.search_registered_models(max_results=1)  # makes the tables
    founded(url, folder)
    each = -(-num_models // (8 * TURNS))
    ours, theirs = [], []
    for turn in range(TURNS):
        ours.append(measure(mos_publisher, (url, str(folder / "home"), f"t{turn}", ARTIFACT_BYTES), 8, each))
        theirs.append(measure(mlflow_publisher, (uri, f"t{turn}"), 8, each))
    ratios = [one.per_second / other.per_second for one, other in zip(ours, theirs, strict=True)]
    search = cpu_of(lambda: client.search_registered_models("tags.tag = 'pet'", max_results=20))
    how = f"median of {TURNS} turns, 8 processes, {each} models with one version each a turn, MLflow on sqlite"
    between = f"{how}; from {min(ratios):.1f} to {max(ratios):.1f}"
    return [
        *_beside("MLflow", theirs, how),
        *_beside("publish, directory, in turns with MLflow", ours, how),
        Row(name=names[0], value=median(ratios), unit="ratio", goal=">= 5", how=between),
        Row(name="search at 1,000 models, MLflow", value=search, unit="CPU s", how="a tag, 20 hits"),
    ]


def _beside(whose: str, loads: list[Load], how: str) -> list[Row]:
    case = f"{whose}, 8 publishers"
    return [
        Row(name=f"{case}: throughput", value=median(one.per_second for one in loads), unit="1/s", how=how),
        Row(name=f"{case}: CPU each", value=median(one.cpu_s for one in loads), unit="CPU s", how=how),
        Row(name=f"{case}: failures", value=float(sum(one.failures for one in loads)), unit="count", how=how),
    ]


def resolving(registry: Registry) -> list[Row]:
    """What finding one version by its key costs, with its state asked of the newest catalogue."""
    ref = ConceptRef("owner-0", "w1-0-0", 1)
    value = cpu_of(lambda: registry.resolve(ref))
    how = f"catalogue of {registry.shelf.catalogue().snapshot.num_rows} rows on a directory"
    return [Row(name="resolve by key", value=value, unit="CPU s", how=how)]


def catching_up(registry: Registry, folder: Path, num: int) -> list[Row]:
    """Index what 1,000 publications left, and compare with a rebuild."""
    index(registry)
    url, home = registry.url, str(folder / "home")
    publish = mos_publisher(url, home, "late", 1024, 0)
    for number in range(num):
        publish(number)
    before = time.process_time()
    index(registry)
    spent = (time.process_time() - before) * 1000 / num
    incremental = all_rows(registry)
    index(registry, "rebuild")
    equal = float(all_rows(registry) == incremental)
    how = f"{num} new manifests beside {len(incremental) - num}, directory, weights read but not judged"
    return [
        Row(name="index catch-up per 1,000 manifests", value=spent, unit="CPU s", how=how),
        Row(name="rebuild is row-equal to incremental", value=equal, unit="yes/no", goal="== 1", how=how),
    ]


def all_rows(registry: Registry) -> list[dict[str, Any]]:
    """Every record of the catalogue."""
    catalogue = registry.shelf.catalogue()
    return [record for shard in catalogue.snapshot.data for record in read_table(catalogue.load(shard)).to_pylist()]


def catalogue_files(folder: Path, num_rows: int) -> list[str]:
    """A catalogue of made-up versions, in files as the indexer writes them."""
    rng = np.random.default_rng(0)
    paths = []
    for start in range(0, num_rows, MAX_SHARD_ROWS):
        count = min(MAX_SHARD_ROWS, num_rows - start)
        data = encode(_made_up(rng, start, count))
        path = folder / f"{sha256_hex(data)}.parquet"
        path.write_bytes(data)
        paths.append(str(path))
    return paths


def _made_up(rng: np.random.Generator, start: int, count: int) -> pa.Table:
    """`count` records, sorted by owner and concept, with tags, bases and licences drawn at random."""
    numbers = np.arange(start, start + count)
    owners = [f"owner-{number // 50:06d}" for number in numbers]
    tag = rng.integers(0, 500, count)
    base = rng.integers(0, 12, count)
    digests = [sha256_hex(b"%d" % number) for number in numbers]
    values: dict[str, Any] = {
        "owner": owners,
        "concept": [f"concept-{number:08d}" for number in numbers],
        "version": np.ones(count, np.int64),
        "state": np.where(rng.random(count) < 0.95, "listed", "yanked"),
        "verdict": ["listed"] * count,
        "tags": [[f"tag-{one}", TAGS[one % 4]] for one in tag],
        "checks": [["signature", "digests", "artifact"]] * count,
        "base_name": [f"base-{one}" for one in base],
        "base_family": ["sd1"] * count,
        "licence": np.where(rng.random(count) < 0.5, "cc-by-4.0", "cc-by-nc-4.0"),
        "title": [f"Thing {number}" for number in numbers],
        "search_text": [f"owner thing {number} tag-{one}" for number, one in zip(numbers, tag, strict=True)],
        "weights_sha256": digests,
        "manifest_sha256": digests[::-1],
        "first_seen_snapshot": rng.integers(0, 5000, count),
    }
    blanks = {pa.string(): "", pa.int64(): 0, pa.bool_(): True}
    columns = []
    for field in ROW_SCHEMA:
        given = values.get(field.name)
        if given is None:
            blank = [[]] if pa.types.is_list(field.type) else [blanks[field.type]]
            given = blank * count
        columns.append(pa.array(given, type=field.type))
    return pa.table(columns, schema=ROW_SCHEMA)


def searching(folder: Path, max_rows: int) -> list[Row]:
    """Filtered searches over catalogues of growing size, files at hand."""
    rows = []
    for num_rows in (10_000, 100_000, 1_000_000):
        if num_rows > max_rows:
            continue
        place = folder / f"rows-{num_rows}"
        place.mkdir()
        paths = catalogue_files(place, num_rows)
        goal = "<= 0.2" if num_rows == 1_000_000 else ""
        queries = {
            "tag and base": Query(tag="tag-7", base="base-3"),
            "one owner": Query(owner="owner-000042"),
            "two words": Query(text="thing tag-7"),
            "everything listed": Query(),
        }
        how = f"{len(paths)} Parquet files, {sum(Path(path).stat().st_size for path in paths) / 1e6:.0f} MB, top 20"
        for what, query in queries.items():
            value = cpu_of(lambda paths=paths, query=query: run_query(paths, query))
            bound = goal if what == "tag and base" else ""
            rows.append(Row(name=f"search {num_rows:,} rows, {what}", value=value, unit="CPU s", goal=bound, how=how))
        value = cpu_of(lambda paths=paths: [sha256_hex(Path(path).read_bytes()) for path in paths])
        name = f"search {num_rows:,} rows, sha256 of every cached file beside it"
        rows.append(Row(name=name, value=value, unit="CPU s", how=how))
    return rows


def similarity(num: int = 100_000, dim: int = 512) -> list[Row]:
    """The 10 closest of many embeddings, reading the files included."""
    rng = np.random.default_rng(0)
    files = []
    for start in range(0, num, MAX_SHARD_ROWS):
        count = min(MAX_SHARD_ROWS, num - start)
        codes, scales = quantise(rng.normal(size=(count, dim)).astype(np.float32))
        table = pa.table(
            [
                pa.array([f"owner-{(start + number) // 50:06d}" for number in range(count)]),
                pa.array([f"concept-{start + number:08d}" for number in range(count)]),
                pa.array(np.ones(count, np.int64)),
                pa.array(np.full(count, dim, np.int64)),
                pa.array([[scale] for scale in scales.tolist()], pa.list_(pa.float32())),
                pa.array([row.tobytes() for row in codes], pa.binary()),
            ],
            schema=EMBEDDING_SCHEMA,
        )
        files.append(encode(table))
    query = rng.normal(size=(1, dim)).astype(np.float32)
    query /= np.linalg.norm(query)

    def search() -> None:
        top([one for data in files for one in nearest_in(data, query, 10)], 10)

    how = f"{num:,} embeddings of {dim} signed bytes in {len(files)} files"
    return [Row(name=f"similarity top 10 of {num:,}", value=cpu_of(search), unit="CPU s", how=how)]


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """A fresh prefix on the S3 server at hand, or on moto's in a process of its own."""
    prefix = f"s3://bench/{int(time.time())}"
    if os.environ.get("AWS_ENDPOINT_URL_S3"):
        yield prefix
        return
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.moto_server", "bench"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        os.environ.update(
            AWS_ENDPOINT_URL_S3=server.stdout.readline().strip(),
            AWS_ACCESS_KEY_ID="testing",
            AWS_SECRET_ACCESS_KEY="testing",
            AWS_DEFAULT_REGION="us-east-1",
        )
        yield prefix
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Measure everything and write benchmarks/results/registry.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the publications")
    parser.add_argument("--max-rows", type=int, default=1_000_000, help="largest catalogue searched")
    options = parser.parse_args()
    num, num_models = (32, 100) if options.quick else (320, 1000)
    with tempfile.TemporaryDirectory(prefix="mos-bench-") as name:
        folder = Path(name)
        url = str(folder / "shelf")
        rows = publishing("directory", url, folder, num)
        peer = mlflow_rows(folder, num_models)
        registry = Registry.open(url, home=folder / "home")
        rows += peer
        rows += catching_up(registry, folder, num_models)
        rows += resolving(registry)
        ours = cpu_of(lambda: registry.search(Query(tag="pet")))
        rows.append(Row(name="search at 1,000 models, ours", value=ours, unit="CPU s", how="a tag, 20 hits, directory"))
        theirs = next((row.value for row in peer if row.name == "search at 1,000 models, MLflow"), None)
        ratio = None if theirs is None else theirs / ours
        rows.append(Row(name="search at 1,000 models, MLflow / ours", value=ratio, unit="ratio", goal=">= 10"))
        rows += searching(folder, options.max_rows)
        rows += similarity()
        with s3_server() as s3_url:
            (folder / "s3").mkdir()
            rows += publishing("S3", s3_url, folder / "s3", num)
    write_results("registry", rows)


if __name__ == "__main__":
    main()
