"""Local data parallelism that tolerates a busy machine: one thread a process, weights averaged now and then."""

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def run_workers(function: Callable[..., None], num_workers: int, *arguments: Any) -> None:
    """Run `function(rank, num_workers, *arguments)` in that many processes joined by gloo; one runs right here.

    The processes end with the caller, however it ends.
    """
    if num_workers == 1:
        function(0, 1, *arguments)
        return
    port = _free_port()
    arguments = (function, num_workers, port, arguments)
    spawn(_worker, args=arguments, nprocs=num_workers)  # type: ignore[no-untyped-call]


def average_(tensors: Iterable[torch.Tensor]) -> None:
    """Replace the tensors by their mean over all workers, in place."""
    if not dist.is_initialized():
        return
    chosen = list(tensors)
    flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in chosen])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    offset = 0
    for tensor in chosen:
        size = tensor.numel()
        tensor.detach().copy_(flat[offset : offset + size].view_as(tensor))
        offset += size


def barrier() -> None:
    """Wait until every worker is here."""
    if dist.is_initialized():
        dist.barrier()


def _worker(rank: int, function: Callable[..., None], num_workers: int, port: int, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=num_workers)
    try:
        function(rank, num_workers, *arguments)
    finally:
        dist.destroy_process_group()


def _end_with_the_parent() -> None:
    """A killed parent cannot stop its workers, and two runs must never write to one folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
