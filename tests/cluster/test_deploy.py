"""The deployment files: valid against the operator's own schemas, safe by default, and of one version."""

import gzip
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import dashboard
from cluster.metrics import METRICS

DEPLOY = Path(dashboard.__file__).parent / "deploy"
SCHEMAS = {"RayCluster": "ray.io_rayclusters.yaml.gz", "RayJob": "ray.io_rayjobs.yaml.gz"}
MANIFESTS = ("raycluster.yaml", "rayjob-fusion.yaml")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / name).read_text())


def schema_of(kind: str, version: str) -> dict[str, Any]:
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("KUBERAY_CRDS names no folder with the operator's schemas")
    resource = yaml.safe_load(gzip.decompress((Path(folder) / SCHEMAS[kind]).read_bytes()))
    versions = {entry["name"]: entry["schema"]["openAPIV3Schema"] for entry in resource["spec"]["versions"]}
    return versions[version]


def faults(value: Any, schema: dict[str, Any], path: str) -> list[str]:
    """Everything in `value` that the API server would refuse or silently drop."""
    if schema.get("x-kubernetes-int-or-string"):
        return [] if isinstance(value, int | str) else [f"{path}: {value!r} is neither number nor text"]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "number": (int, float)}
    expected = kinds.get(schema.get("type", ""))
    if expected and (not isinstance(value, expected) or (expected is int and isinstance(value, bool))):
        return [f"{path}: {value!r} is not of type {schema['type']}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: {value!r} is not one of {schema['enum']}")
    if isinstance(value, dict):
        found += object_faults(value, schema, path)
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += faults(item, schema.get("items", {}), f"{path}[{index}]")
    return found


def object_faults(value: dict[str, Any], schema: dict[str, Any], path: str) -> list[str]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or ("properties" not in schema and not others)
    found = [f"{path}: {name} is required" for name in schema.get("required", []) if name not in value]
    for name, item in value.items():
        if name in known:
            found += faults(item, known[name], f"{path}.{name}")
        elif isinstance(others, dict):
            found += faults(item, others, f"{path}.{name}")
        elif not is_open:
            found.append(f"{path}.{name}: unknown field")
    return found


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_satisfy_the_operators_schema(name: str) -> None:
    manifest = load(name)
    version = manifest["apiVersion"].removeprefix("ray.io/")
    schema = schema_of(manifest["kind"], version)
    assert len(json.dumps(schema)) > 100_000
    assert faults(manifest, schema, manifest["kind"]) == []


def test_the_schema_check_finds_a_misspelt_and_a_mistyped_field() -> None:
    manifest = load("raycluster.yaml")
    schema = schema_of("RayCluster", "v1")
    manifest["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    manifest["spec"]["workerGroupSpecs"][0]["minReplicas"] = "none"
    del manifest["spec"]["headGroupSpec"]["template"]
    found = "\n".join(faults(manifest, schema, "RayCluster"))
    assert "maxReplica: unknown field" in found
    assert "'none' is not of type integer" in found
    assert "template is required" in found


def pods(name: str) -> list[dict[str, Any]]:
    spec = load(name)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_pod_asks_for_a_token_and_runs_as_nobody_special(name: str) -> None:
    seen = 0
    for pod in pods(name):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            environment = {entry["name"]: entry for entry in container["env"]}
            assert environment["RAY_AUTH_MODE"]["value"] == "token"
            assert "secretKeyRef" in environment["RAY_AUTH_TOKEN"]["valueFrom"]
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
            seen += 1
    assert seen >= 2


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_name_the_ray_we_pin(name: str) -> None:
    spec = load(name)["spec"]
    assert spec.get("rayClusterSpec", spec)["rayVersion"] == metadata.version("ray")


def test_gpu_workers_scale_from_zero() -> None:
    group = load("raycluster.yaml")["spec"]["workerGroupSpecs"][0]
    assert (
        group["minReplicas"],
        group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"],
    ) == (
        0,
        "1",
    )


def test_the_ray_up_file_satisfies_rays_own_schema() -> None:
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = load("ray-up.yaml")
    jsonschema.validate(config, schema)
    assert all("RAY_AUTH_MODE=token" in line for line in config["worker_start_ray_commands"] if "ray start" in line)


def test_the_dashboard_file_is_the_one_the_table_gives() -> None:
    assert json.loads((DEPLOY / "grafana-dashboard.json").read_text()) == dashboard.dashboard()


def test_every_metric_is_on_the_dashboard() -> None:
    queries = " ".join(panel.query for panel in dashboard.PANELS)
    missing = [spec.name for spec in METRICS if f"ray_{spec.name}" not in queries]
    assert missing == []
