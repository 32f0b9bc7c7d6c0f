"""What a worker finds where Ray has put it: its device, and the memory its share of the machine entitles it to."""

import os
from pathlib import Path

from cluster.placement import Resources


def device() -> str:
    """`cuda` if Ray gave this process a GPU that torch can use, else `cpu`."""
    import ray
    import torch

    has_gpu = bool(ray.get_gpu_ids()) if ray.is_initialized() else False
    return "cuda" if has_gpu and torch.cuda.is_available() else "cpu"


def free_memory_bytes(resources: Resources) -> int:
    """Memory left for this worker's slots, its base loaded: on a GPU its share of that GPU's, else of the machine's.

    A reservation that was asked for is taken at its word. Otherwise a worker that asked for half of the
    machine's CPUs may use half of what is free now.
    """
    if resources.memory_bytes:
        return max(0, resources.memory_bytes - resident_bytes())
    if device() == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        return max(0, int(total * min(1.0, resources.num_gpus)) - (total - free))
    share = min(1.0, resources.num_cpus / (os.cpu_count() or 1))
    return int(available_bytes() * share)


def available_bytes() -> int:
    """Memory of this machine that can be had without swapping; all of it where /proc does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    entries = dict(line.split(":", 1) for line in lines)
    return int(entries["MemAvailable"].split()[0]) * 1024


def resident_bytes() -> int:
    """Memory of this process."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
