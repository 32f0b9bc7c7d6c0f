"""A process of its own that trains and fuses on a Ray which is being disturbed: `python -m tests.cluster.disturbed`.

Arguments: scenario, base folder, registry folder. Prints one JSON document: what came of each piece of work, which
actors still live, how long the cluster took to have all its resources back, and how many messages Ray lost on purpose.

    node    a head without CPUs and one node; the node is killed twice, each time with another one there to take over
    calls   one Ray on which calls to actors and requests for workers are lost, by Ray's own injection
"""

import hashlib
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOSSES = {
    "CoreWorkerService.grpc_client.PushTask": {"num_failures": 4, "req_failure_prob": 10, "resp_failure_prob": 10},
    "NodeManagerService.grpc_client.RequestWorkerLease": {
        "num_failures": 3,
        "req_failure_prob": 30,
        "resp_failure_prob": 30,
    },
}


def main() -> None:
    scenario, base, url = sys.argv[1:]
    settings = {"health_check_period_ms": "1000", "health_check_failure_threshold": "5"}  # a node's death: seconds
    settings |= {"testing_rpc_failure": json.dumps(LOSSES)} if scenario == "calls" else {}
    os.environ.update({f"RAY_{name}": value for name, value in settings.items()})
    with {"node": two_nodes, "calls": lossy}[scenario]() as (disturb, ray_dir):
        found = work(base, url, disturb, loses_a_worker=scenario == "node") | {"lost_messages": injected(ray_dir)}
    print(json.dumps(found))


def injected(ray_dir: Path) -> int:
    """How many messages Ray's logs say that it has lost on purpose."""
    logs = ray_dir.glob("session_2*/logs/**/*")
    return sum(path.read_bytes().count(b"Inject RPC re") for path in logs if path.is_file())


def work(base: str, url: str, disturb: Callable[[], None], *, loses_a_worker: bool) -> dict[str, Any]:
    import ray

    from tests.cluster.work import living

    whole = ray.cluster_resources()["CPU"]
    found = {"trained": trained(base, url, disturb, loses_a_worker), "fused": fused(base, disturb)}
    started = time.monotonic()
    while (ray.available_resources().get("CPU", 0.0) < whole or living()) and time.monotonic() - started < 90:
        time.sleep(0.2)
    return found | {"returned_after_s": time.monotonic() - started, "actors": living()}


def trained(base: str, url: str, disturb: Callable[[], None], loses_a_worker: bool) -> dict[str, Any]:
    """Train one concept; the disturbance comes after its first checkpoint, and no second is written before."""
    from cluster.failure import RetryPolicy
    from cluster.places import RegistryPlaces
    from cluster.staging import read_staged
    from cluster.supervisor import PoolConfig, Supervisor
    from tests.cluster.kills import HoldingPlaces
    from tests.cluster.work import concept_request

    events: list[dict[str, Any]] = []
    pool = PoolConfig(retries=RetryPolicy(max_retries=8, first_wait_s=0.2), heartbeat_timeout_s=120.0)
    gate = Path(url) / "disturbed"
    supervisor = Supervisor(HoldingPlaces(url, gate), pool, on_event=lambda _, event: events.append(dict(event)))
    supervisor.enqueue(concept_request("alice", url), base)
    is_disturbed = False
    while not supervisor.is_idle:
        supervisor.tick()
        if not is_disturbed and any(event["event"] == "checkpoint" for event in events):
            is_disturbed = True
            disturb()
        if is_disturbed and (not loses_a_worker or any(event["event"] == "retrying" for event in events)):
            gate.touch()
        time.sleep(0.05)
    supervisor.close()
    (outcome,) = supervisor.outcomes.values()
    kinds = [event["event"] for event in events]
    artifact = read_staged(RegistryPlaces(url)("concept-alice"))[0] if outcome["event"] == "staged" else b""
    return {"outcome": outcome, "retries": kinds.count("retrying"), "sha256": hashlib.sha256(artifact).hexdigest()}


def fused(base: str, disturb: Callable[[], None]) -> dict[str, Any]:
    """Fuse two concepts; the disturbance comes when the first has been recorded, the second under way."""
    from cluster.failure import RetryPolicy
    from cluster.fusion import RayFusionExecutor
    from cluster.pool import PoolOptions
    from mos.base_model import load_base
    from tests.cluster.work import FUSION, fused_sha256, fusion_sources

    model = load_base(base)
    retries: list[str] = []
    seen: list[Any] = []

    def once(interval: Any) -> None:
        if not seen:
            seen.append(interval)
            disturb()

    options = PoolOptions(num_workers=2, retries=RetryPolicy(max_retries=8, first_wait_s=0.2))
    with RayFusionExecutor(base, FUSION, options, on_interval=once, on_retry=retries.append) as executor:
        sha256 = fused_sha256(model, fusion_sources(model), executor)
    return {"sha256": sha256, "retries": len(retries)}


@contextmanager
def lossy() -> Iterator[tuple[Callable[[], None], Path]]:
    from cluster.session import local_ray

    with local_ray(num_cpus=2) as session:
        assert session.temp_dir is not None
        yield (lambda: None), Path(session.temp_dir)


@contextmanager
def two_nodes() -> Iterator[tuple[Callable[[], None], Path]]:
    """A head without CPUs and one node with all of them; disturbing kills that node once another has come."""
    from cluster import keeper
    from cluster.session import private_environment, read_environment_again

    mark, temp_dir = secrets.token_hex(8), tempfile.mkdtemp(prefix="mos-nodes-")
    (Path(temp_dir) / "ray").mkdir()  # the cluster's address is noted there, not in a folder all of the machine reads
    os.environ.update(private_environment(mark) | {"RAY_TMPDIR": temp_dir})
    import ray
    from ray.cluster_utils import Cluster

    read_environment_again()
    small = {"object_store_memory": 128 * 2**20, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args=small | {"num_cpus": 0, "temp_dir": temp_dir})
    nodes = [cluster.add_node(num_cpus=2, **small)]
    ray.init(address=cluster.address, namespace="mos", log_to_driver=False, logging_level="ERROR")

    def disturb() -> None:
        nodes.append(cluster.add_node(num_cpus=2, **small))
        cluster.remove_node(nodes.pop(0), allow_graceful=False)

    try:
        yield disturb, Path(temp_dir)
    finally:
        ray.shutdown()
        cluster.shutdown()
        keeper.end_processes(mark, temp_dir)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    main()
