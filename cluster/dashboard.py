"""The Grafana dashboard of mos, made from the table of metrics: `python -m cluster.dashboard > FILE`."""

import json
from dataclasses import dataclass
from typing import Any

PREFIX = "ray_"
"""Ray puts this before every metric's name."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel: a title, a query, the legend of its lines, and the unit Grafana shows."""

    title: str
    query: str
    legend: str
    unit: str = "short"


PANELS = (
    Panel(
        title="Training steps a second",
        query="sum by (owner, concept) (rate(ray_mos_steps_total[1m]))",
        legend="{{owner}}/{{concept}}",
        unit="ops",
    ),
    Panel(title="Loss", query="max by (owner, concept) (ray_mos_loss)", legend="{{owner}}/{{concept}}"),
    Panel(
        title="Seconds a step, 90th percentile",
        query="histogram_quantile(0.9, sum by (le) (rate(ray_mos_step_seconds_bucket[1m])))",
        legend="p90",
        unit="s",
    ),
    Panel(title="Concepts in training by worker", query="sum by (worker) (ray_mos_slots)", legend="{{worker}}"),
    Panel(
        title="Checkpoints in five minutes",
        query="sum by (owner, concept) (increase(ray_mos_checkpoints_total[5m]))",
        legend="{{owner}}/{{concept}}",
    ),
    Panel(title="Layers solved", query="sum by (stage) (ray_mos_layers_done_total)", legend="{{stage}}"),
    Panel(title="Versions published", query="sum by (owner) (ray_mos_publishes_total)", legend="{{owner}}"),
    Panel(title="Attempts after a lost worker", query="sum by (run) (ray_mos_retries_total)", legend="{{run}}"),
)
"""Every metric of `cluster.metrics` appears in at least one."""


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it; its data source is a variable."""
    return {
        "title": "mos",
        "uid": "mos",
        "schemaVersion": 39,
        "version": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}]
        },
        "panels": [_panel(number, panel) for number, panel in enumerate(PANELS)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": source,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [{"refId": "A", "expr": panel.query, "legendFormat": panel.legend, "datasource": source}],
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
