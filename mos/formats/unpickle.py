"""Turns a stranger's PyTorch file into a safetensors file; runs as a process of its own, never in ours.

Started as ``python -I unpickle.py IN OUT`` with an empty environment. It takes only what
``torch.load(weights_only=True)`` takes, walks dicts and lists, and writes tensors by number with a JSON map
of their paths. It imports nothing of mos, so that it runs where mos is not installed.
"""

import json
import re
import resource
import sys
from collections.abc import Iterator
from typing import Any

_MEMORY_BYTES = 16 << 30
_FILE_BYTES = 4 << 30
_CPU_S = 300
_MOST_ENTRIES = 20_000
_DEEPEST = 8


def main(source: str, target: str) -> int:
    """Convert one file; 0 when done, 3 with one line on stderr when the file is refused."""
    for limit, value in (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_CPU, _CPU_S),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    import torch
    from safetensors.torch import save_file

    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
        tensors, document = _flatten(content)
        save_file(tensors or {"empty": torch.zeros(0)}, target, metadata={"content": document})
    except Exception as error:
        print(_reason(str(error)), file=sys.stderr)
        return 3
    return 0


def _reason(message: str) -> str:
    """One line; of torch's advice only what the file asked for, and never how to load it all the same."""
    asked = re.search(r"GLOBAL ([\w.]{1,80})", message)
    if asked:
        return f"it calls {asked[1]}, which no weights need"
    return " ".join(message.partition("weights_only")[0].split())[:200] or "no tensors in a form that is safe to read"


def _flatten(content: Any) -> tuple[dict[str, Any], str]:
    """Number the tensors; return them and the JSON of their paths and of the scalars beside them."""
    import torch

    paths: list[list[str]] = []
    tensors: dict[str, Any] = {}
    scalars: list[list[Any]] = []
    for path, value in _walk(content, ()):
        if isinstance(value, torch.Tensor):
            tensors[str(len(paths))] = value.detach().to_dense().clone().contiguous()
            paths.append(list(path))
        elif isinstance(value, str | int | float | bool):
            scalars.append([list(path), value])
        if len(paths) + len(scalars) > _MOST_ENTRIES:
            raise ValueError(f"more than {_MOST_ENTRIES} entries")
    return tensors, json.dumps({"paths": paths, "scalars": scalars})


def _walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if len(path) > _DEEPEST:
        raise ValueError(f"nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _walk(item, (*path, str(index)))
    else:
        yield path, value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
