"""The figures a running job exposes: `ray_mos_*` on every node's metrics port, for Prometheus to scrape.

Ray puts `ray_` before the names given here. Counters begin at 0 with each new worker process, so queries use
`increase()` and `rate()`, which allow for that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

LABELS = ("run", "owner", "concept")


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """One metric: its name, "gauge" | "counter" | "histogram", its help text and its labels."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = LABELS


METRICS = (
    MetricSpec(name="mos_steps_total", kind="counter", text="Training steps done"),
    MetricSpec(name="mos_loss", kind="gauge", text="Training loss, mean of the last logging interval"),
    MetricSpec(name="mos_step_seconds", kind="histogram", text="Duration of one training step of one slot"),
    MetricSpec(name="mos_slots", kind="gauge", text="Concepts in training in one worker", labels=("worker",)),
    MetricSpec(name="mos_checkpoints_total", kind="counter", text="Checkpoints written"),
    MetricSpec(name="mos_layers_done_total", kind="counter", text="Linear layers solved", labels=("stage",)),
    MetricSpec(name="mos_publishes_total", kind="counter", text="Versions published", labels=("owner",)),
    MetricSpec(name="mos_retries_total", kind="counter", text="Attempts after a lost worker", labels=("run",)),
)
"""All metrics there are; the dashboard file and its test read this table."""

STEP_BOUNDARIES_S = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]


def count_publication(owner: str) -> None:
    """Count a published version, if this process is connected to a Ray that could tell anyone."""
    import ray

    if ray.is_initialized():
        add("mos_publishes_total", {"owner": owner})


def add(name: str, labels: Mapping[str, str], value: float = 1.0) -> None:
    """Count `value` on a counter."""
    _metric(name).inc(value, tags=dict(labels))


def put(name: str, labels: Mapping[str, str], value: float) -> None:
    """Set a gauge."""
    _metric(name).set(value, tags=dict(labels))


def observe(name: str, labels: Mapping[str, str], value: float) -> None:
    """Add a value to a histogram."""
    _metric(name).observe(value, tags=dict(labels))


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    spec = next(spec for spec in METRICS if spec.name == name)
    makers: dict[str, Callable[..., Any]] = {"counter": metrics.Counter, "gauge": metrics.Gauge}
    if spec.kind == "histogram":
        return metrics.Histogram(name, spec.text, boundaries=STEP_BOUNDARIES_S, tag_keys=spec.labels)
    return makers[spec.kind](name, spec.text, tag_keys=spec.labels)
