"""What each kind of worker asks of a machine, and a clear answer when nobody can give it.

Ray schedules by what is stated: an actor that states only a GPU holds a CPU for life as well, and the next
one waits without a word. So both are stated, always, and waiting has an end.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import PendingTimeoutError, UnsatisfiableError
from mos.errors import BadInputError


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker asks for.

    Attributes:
        num_cpus: Share of logical CPUs; fractions let several workers share one.
        num_gpus: GPUs, or the share of one.
        memory_bytes: Memory to reserve, 0 for no reservation.
    """

    num_cpus: float
    num_gpus: float = 0.0
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        if self.num_cpus < 0 or self.num_gpus < 0 or self.memory_bytes < 0:
            raise ValueError(f"resources cannot be negative: {self}")
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise ValueError(f"more than one GPU comes in whole numbers: {self.num_gpus}")

    def options(self) -> dict[str, float]:
        """The keyword arguments of Ray's `.options()`; CPUs and GPUs both stated."""
        stated: dict[str, float] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        return stated | ({"memory": self.memory_bytes} if self.memory_bytes else {})

    def __str__(self) -> str:
        parts = [f"{self.num_cpus:g} CPU"]
        parts += [f"{self.num_gpus:g} GPU"] if self.num_gpus else []
        parts += [f"{self.memory_bytes / 2**30:.1f} GiB"] if self.memory_bytes else []
        return " + ".join(parts)


GROWS_VARIABLE = "MOS_CLUSTER_GROWS"
"""Set to 1 in the environment of a cluster that adds nodes when actors wait for them."""


def cluster_grows() -> bool:
    """Whether an autoscaler adds what is missing; then waiting is bounded by the pending timeout alone."""
    return os.environ.get(GROWS_VARIABLE) == "1"


def pending_timeout_s() -> float:
    """How long an actor may wait for room: five minutes, or half an hour where a machine may have to start first."""
    return 1800.0 if cluster_grows() else 300.0


TRAINER = Resources(num_cpus=0.5)
"""A trainer on CPU: three of them share two logical CPUs and leave room for a solver."""

SOLVER = Resources(num_cpus=0.5)
"""A fusion worker on CPU, which records and solves."""

EVALUATOR = Resources(num_cpus=0.5)
"""A worker that draws and scores pictures."""


def gpu_trainer(share: float) -> Resources:
    """A trainer on `share` of a GPU, with one CPU to feed it."""
    return Resources(num_cpus=1.0, num_gpus=share)


def share_of_gpu(name: str, default: float) -> float:
    """The share of one GPU that the variable `name` asks for a worker.

    Raises:
        BadInputError: If it is no number from 0 to 1.
    """
    text = os.environ.get(name, "")
    try:
        share = float(text) if text else default
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise BadInputError(f"{name}={text}: expected a share of one GPU from 0 to 1; set it where the cluster starts")
    return share


def solver() -> Resources:
    """A fusion worker: on CPU, unless MOS_FUSION_GPUS gives each a share of a GPU, which trainers then cannot have."""
    return replace(SOLVER, num_gpus=share_of_gpu("MOS_FUSION_GPUS", 0.0))


def nodes_of(nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The resources of the living nodes, from `ray.nodes()`."""
    return [dict(node["Resources"]) for node in nodes if node.get("Alive", node.get("alive"))]


def check_satisfiable(what: str, ask: Resources, nodes: Sequence[Mapping[str, float]]) -> None:
    """Insist that at least one node could hold one such worker once it is free, unless the cluster grows.

    Args:
        what: Who asks, for the message.
        ask: What it asks for.
        nodes: Total resources of each node, as Ray names them (`CPU`, `GPU`, `memory`).

    Raises:
        UnsatisfiableError: With what is asked and the most that any node has.
    """
    wanted = {"CPU": ask.num_cpus, "GPU": ask.num_gpus, "memory": float(ask.memory_bytes)}
    if cluster_grows() or any(all(node.get(name, 0.0) >= amount for name, amount in wanted.items()) for node in nodes):
        return
    raise UnsatisfiableError(f"{what} asks for {ask}, and no node has that: {describe(nodes)}; ask for less")


def describe(nodes: Sequence[Mapping[str, float]]) -> str:
    """The nodes' totals in words."""
    if not nodes:
        return "the cluster has no node"
    words = [
        f"{node.get('CPU', 0):g} CPU + {node.get('GPU', 0):g} GPU + {node.get('memory', 0) / 2**30:.1f} GiB"
        for node in nodes
    ]
    return f"{len(words)} node{'s' if len(words) > 1 else ''} with " + ", ".join(sorted(set(words)))


def wait_until_placed(what: str, ask: Resources, answers: Sequence[Any], *, timeout_s: float) -> None:
    """Wait for the first answer of every new actor.

    Args:
        what: Who waits, for the message.
        ask: What each asked for.
        answers: One object reference an actor, of a method that returns at once.
        timeout_s: The pending timeout.

    Raises:
        PendingTimeoutError: If one is still pending by then.
    """
    import ray

    ready, waiting = ray.wait(list(answers), num_returns=len(answers), timeout=timeout_s)
    if waiting:
        free = ray.available_resources()
        raise PendingTimeoutError(
            f"{what}: {len(waiting)} of {len(answers)} workers with {ask} each found no room within "
            f"{timeout_s:g} s; free now are {free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU of "
            f"{describe(nodes_of(ray.nodes()))}; wait for other jobs (`mos jobs ls`) or ask for less"
        )
    ray.get(ready)
