"""Publishers as processes of their own, ours and MLflow's, started together at a gate."""

import multiprocessing
import os
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

TAGS = ("pet", "toy", "plant", "machine")

_PRELOADED = ("benchmarks.results_file", "registry.client", "registry.shards", "registry.similarity")


@dataclass(frozen=True)
class Load:
    """What a crowd of publishers achieved.

    Attributes:
        per_second: Registrations per second of wall time, from the first start to the last end.
        median_s: Median seconds of one registration.
        failures: Registrations that ended in an error.
        cpu_s: CPU seconds of the publishers per registration.
    """

    per_second: float
    median_s: float
    failures: int
    cpu_s: float


def measure(
    work: Callable[..., Callable[[int], None]], arguments: tuple[Any, ...], num_workers: int, each: int
) -> Load:
    """Run `work(*arguments, worker)` in `num_workers` processes; what it returns is called `each` times.

    Args:
        work: Prepares one publisher; must be importable.
        arguments: Passed on, before the number of the worker.
        num_workers: How many processes.
        each: Registrations a process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))  # so that a worker starts in a moment
    gate, results = context.Barrier(num_workers), context.Queue()
    workers = [
        context.Process(target=_work, args=(work, (*arguments, number), each, gate, results, dict(os.environ)))
        for number in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    found = _collect(results, workers)
    for worker in workers:
        worker.join()
    latencies = [one for result in found for one in result["latencies"]]
    wall = max(result["end"] for result in found) - min(result["start"] for result in found)
    return Load(
        per_second=len(latencies) / wall,
        median_s=median(latencies) if latencies else float("nan"),
        failures=sum(result["failures"] for result in found),
        cpu_s=sum(result["cpu_s"] for result in found) / max(len(latencies), 1),
    )


def _collect(results: Any, workers: list[Any]) -> list[dict[str, Any]]:
    """What each worker reports.

    Raises:
        RuntimeError: If one ended without a report.
    """
    found: list[dict[str, Any]] = []
    while len(found) < len(workers):
        try:
            found.append(results.get(timeout=5))
        except queue.Empty:
            if any(worker.exitcode for worker in workers):
                raise RuntimeError("a publisher ended before it could begin; see above") from None
    return found


def _work(
    work: Any, arguments: tuple[Any, ...], each: int, gate: Any, results: Any, environment: dict[str, str]
) -> None:
    latencies, failures = [], 0
    os.environ.update(environment)  # a fork server keeps the environment it began with
    try:
        register = work(*arguments)
    except BaseException:
        gate.abort()  # the others would wait for ever
        raise
    gate.wait()
    start, cpu = time.monotonic(), time.process_time()
    for number in range(each):
        began = time.monotonic()
        try:
            register(number)
        except Exception as error:
            failures += 1
            print(f"a registration failed: {type(error).__name__}: {str(error)[:200]}", flush=True)
        else:
            latencies.append(time.monotonic() - began)
    end = time.monotonic()
    results.put(
        {"latencies": latencies, "failures": failures, "start": start, "end": end, "cpu_s": time.process_time() - cpu}
    )


def mos_publisher(url: str, home: str, prefix: str, size_bytes: int, worker: int) -> Callable[[int], None]:
    """A publisher of small concepts, each a first version, all of one owner."""
    from mos.concept import ConceptRef
    from registry.client import Details, Registry
    from registry.licence import Licence
    from registry.weights import Package

    registry = Registry.open(url, home=home)
    owner = f"owner-{worker % 8}"
    key = registry.home.owner_key(owner)
    licence = Licence.named("cc-by-4.0")

    def publish(number: int) -> None:
        name = f"{prefix}-{worker}-{number}"
        weights = f"{owner}/{name}".encode().ljust(size_bytes, b".")
        package = Package(
            kind="concept",
            files={"weights": weights},
            base_name="tiny",
            base_family="sd1",
            base_fingerprint={"unet": "0" * 64, "text_encoder": "1" * 64},
            words=(f"<{name}-rand>", f"<{name}-class>"),
            class_word="robot",
            concept_kind="object",
            rank=4,
            recipe={"steps": "500"},
            title=f"Thing {number}",
        )
        details = Details(tags=(TAGS[number % len(TAGS)],))
        registry.publish_package(package, ConceptRef(owner, name), key, f"run-{name}", licence, details)

    publish(-1 % 10**6)
    return publish


def mlflow_publisher(uri: str, prefix: str, worker: int) -> Callable[[int], None]:
    """A publisher of registered models with one version and the same facts as tags."""
    client = mlflow_client(uri)

    def register(number: int) -> None:
        name = f"owner-{worker % 8}.{prefix}-{worker}-{number}"
        tags = {"tag": TAGS[number % len(TAGS)], "base": "tiny", "licence": "cc-by-4.0", "class_word": "robot"}
        client.create_registered_model(name, tags=tags, description=f"Thing {number}")
        client.create_model_version(name, source=f"file:///nowhere/{name}", tags={**tags, "sha256": "0" * 64})

    register(-1 % 10**6)
    return register


def mlflow_client(uri: str) -> Any:
    """An MLflow client on a sqlite registry.

    Raises:
        SystemExit: If MLflow is not installed; says how to get it.
    """
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise SystemExit("the peer is missing: pip install -c constraints.txt '.[bench]' (mlflow-skinny)") from error
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def has_mlflow() -> bool:
    """Whether the peer is installed."""
    import importlib.util

    return all(importlib.util.find_spec(name) for name in ("mlflow", "sqlalchemy"))
