"""What this machine has and lacks for mos, each with the command that mends it."""

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mos.errors import MosError

NEEDED = ("torch", "diffusers", "transformers", "safetensors", "ray", "boto3", "pyarrow", "duckdb", "cryptography")
MIN_MEMORY_BYTES = 6 * 2**30
MIN_DISK_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        is_good: Whether it is as needed; None for a remark.
        found: What was found.
        remedy: The command or step that mends it; empty when good.
    """

    name: str
    is_good: bool | None
    found: str
    remedy: str = ""


def examine(base: str | None, registry_url: str, ray_address: str | None) -> list[Finding]:
    """Look at everything; a check that itself breaks is a finding, not an error."""
    checks: Mapping[str, Callable[[], list[Finding]]] = {
        "python": _python,
        "packages": _packages,
        "memory": _memory,
        "disk": _disk,
        "gpu": _gpu,
        "base": lambda: _base(base),
        "registry": lambda: _registry(registry_url),
        "ray": lambda: _ray(ray_address),
    }
    return [finding for name, check in checks.items() for finding in _findings(name, check)]


def _findings(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except Exception as error:  # a package that is missing or broken breaks the checks that need it, in any way
        text = str(error) if isinstance(error, MosError) else f"{type(error).__name__}: {error}"
        return [Finding(name=name, is_good=False, found=text, remedy="make setup")]


def _python() -> list[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    is_good = sys.version_info >= (3, 11)
    return [Finding(name="python", is_good=is_good, found=found, remedy="" if is_good else "install Python 3.11")]


def _packages() -> list[Finding]:
    findings = []
    for name in NEEDED:
        try:
            findings.append(Finding(name=name, is_good=True, found=metadata.version(name)))
        except metadata.PackageNotFoundError:
            findings.append(Finding(name=name, is_good=False, found="not installed", remedy="make setup"))
    return findings


def _memory() -> list[Finding]:
    if not hasattr(os, "sysconf"):
        return []
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    is_good = size >= MIN_MEMORY_BYTES
    remedy = "" if is_good else "train one concept at a time; three at once take up to 6 GB"
    return [Finding(name="memory", is_good=is_good, found=f"{size / 2**30:.1f} GiB", remedy=remedy)]


def _disk() -> list[Finding]:
    findings = []
    for name, folder in (("home", Path.home()), ("temporary", Path("/tmp")), ("shared memory", Path("/dev/shm"))):  # noqa: S108
        if folder.exists():
            free = shutil.disk_usage(folder).free
            is_good = free >= MIN_DISK_BYTES or (name == "shared memory" and free >= 2**28)
            remedy = "" if is_good else f"free some space in {folder}"
            findings.append(
                Finding(name=f"disk: {name}", is_good=is_good, found=f"{free / 2**30:.1f} GiB free", remedy=remedy)
            )
    return findings


def _gpu() -> list[Finding]:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return [Finding(name="gpu", is_good=True, found=torch.cuda.get_device_name())]
    return [Finding(name="gpu", is_good=None, found="none: the small world trains on CPU, Stable Diffusion does not")]


def _base(base: str | None) -> list[Finding]:
    from jobs.opening import open_base

    try:
        facts = open_base(base).facts
    except MosError as error:
        return [Finding(name="base", is_good=False, found=str(error), remedy="give --base, or restore mos/smallworld")]
    return [Finding(name="base", is_good=True, found=f"{facts.name} ({facts.family}, {facts.resolution} px)")]


def _registry(url: str) -> list[Finding]:
    from registry import Registry

    try:
        registry = Registry.open(url)
    except MosError as error:
        remedy = f"mos registry init --registry {url}"
        return [Finding(name="registry", is_good=False, found=str(error), remedy=remedy)]
    role = "this home may index it" if registry.may_index else "somebody else indexes it"
    return [Finding(name="registry", is_good=True, found=f"{registry.url}, {role}")]


def _ray(address: str | None) -> list[Finding]:
    from cluster.head import find_head
    from cluster.submission import job_status

    if address is None:
        head = find_head()
        found = f"head started here at {head.dashboard_url}" if head else "none running; commands start a private one"
        return [Finding(name="ray", is_good=None, found=found)]
    try:
        job_status(address, "none")
    except MosError as error:
        return [Finding(name="ray", is_good=False, found=str(error), remedy="mos cluster up")]
    mode = os.environ.get("RAY_AUTH_MODE", "")
    findings = [Finding(name="ray", is_good=True, found=f"{address} answers")]
    if find_head() is None and mode != "token":
        text = "no token is set here: whoever reaches this cluster runs code on it"
        findings.append(Finding(name="ray token", is_good=None, found=text, remedy="RAY_AUTH_MODE=token on all nodes"))
    return findings
