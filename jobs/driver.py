"""What runs on a cluster for one run: `python -P -m jobs.driver RUN REGISTRY`.

It reads its request from the run's private place, trains, fuses or evaluates there, leaves the unsigned result in the
same place, and prints every event as one line. -P keeps modules that lie beside a person's script from
being taken for ours.
"""

import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.checkpoint import RunPlace
from cluster.places import RegistryPlaces
from cluster.progress import Event
from cluster.session import connected
from cluster.staging import delete_pictures
from cluster.submission import EVENT_PREFIX
from jobs.grants import GRANT, publish_granted
from mos.concept import ConceptRef
from mos.errors import JobFailedError, MosError, UsageError
from registry.errors import ObjectMissingError

REQUEST = "job/request.json"
CANCEL = "job/cancel"
RESULT = "result"
_CANCEL_POLL_S = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Run one request; the exit code is the error's."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 2:
        raise UsageError("usage: python -P -m jobs.driver RUN REGISTRY")
    run_id, registry_url = words
    place = RegistryPlaces(registry_url)(run_id)
    request = json.loads(place.get(REQUEST))
    jobs: dict[str, Callable[[str, str, RunPlace, Mapping[str, Any]], None]] = {
        "concept": _train,
        "fusion": _fuse,
        "evaluation": _evaluate,
    }
    try:
        jobs[request["kind"]](run_id, registry_url, place, request)
    except MosError as error:
        tell(run_id, {"event": "failed", "error": str(error), "exit_code": error.exit_code})
        return error.exit_code
    return 0


def tell(run_id: str, event: Event) -> None:
    """Print an event for whoever follows the job's log."""
    print(EVENT_PREFIX + json.dumps({"run_id": run_id, "at": time.time()} | dict(event), sort_keys=True), flush=True)


def _train(run_id: str, registry_url: str, place: RunPlace, request: Mapping[str, Any]) -> None:
    from cluster.shared_pool import train_in_shared_pool
    from cluster.trainer import TrainingRequest
    from mos.training import TrainingConfig

    options = {name: tuple(value) if isinstance(value, list) else value for name, value in request["config"].items()}
    order = TrainingRequest(
        run_id=run_id,
        ref=ConceptRef.parse(request["ref"]),
        config=TrainingConfig().with_options(**options),
        num_seeds=request.get("num_seeds", 1),
        grid_steps=tuple(request.get("grid_steps", ())),
        checkpoint_every=request["checkpoint_every"],
        memory_bytes=request["memory_bytes"],
    )
    with connected(os.environ["RAY_ADDRESS"]):
        event = train_in_shared_pool(
            order,
            registry_url,
            request["base"],
            is_cancelled=_cancel_watch(place),
            on_event=tell,
        )
        if event["event"] == "staged" and _is_there(place, GRANT):  # connected, so that the cluster counts it
            tell(run_id, {"event": "published", "ref": publish_granted(place, run_id, registry_url, request)})
    if event["event"] in ("cancelled", "failed"):  # a fenced attempt leaves them to the one that has taken its run
        delete_pictures(place)
    if event["event"] == "failed":
        sys.exit(int(event.get("exit_code", JobFailedError.exit_code)))


def _fuse(run_id: str, registry_url: str, place: RunPlace, request: Mapping[str, Any]) -> None:
    from jobs.fuse_concepts import run_fusion
    from jobs.specs import FusionSpec
    from registry import Registry

    tell(run_id, {"event": "started", "step": 0, "steps": 3, "pid": os.getpid(), "attempt": 1})
    with tempfile.TemporaryDirectory() as folder:
        spec = dataclasses.replace(FusionSpec.from_json(request["spec"]), out=str(Path(folder) / "out"), publish="")
        run_fusion(
            spec,
            Registry.open(registry_url),
            ray_address=os.environ["RAY_ADDRESS"],
            say=lambda text: tell(run_id, {"event": "note", "text": text}),
        )
        contents = {path.name: path.read_bytes() for path in sorted((Path(folder) / "out").iterdir())}
    for name, content in contents.items():
        place.put(f"{RESULT}/{name}", content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    place.put(f"{RESULT}.json", json.dumps(digests, sort_keys=True).encode())
    tell(run_id, {"event": "staged", "sha256": "fused"})


def _evaluate(run_id: str, registry_url: str, place: RunPlace, request: Mapping[str, Any]) -> None:
    from jobs.evaluate import prepare_evaluation, run_here
    from jobs.remote_evaluation import fetch_inputs

    del registry_url
    tell(run_id, {"event": "started", "step": 0, "steps": 0, "pid": os.getpid(), "attempt": 1})
    try:
        with tempfile.TemporaryDirectory() as folder:
            job = prepare_evaluation(fetch_inputs(place, request["request"], Path(folder)))
            outcome = run_here(
                job,
                ray_address=os.environ["RAY_ADDRESS"],
                on_block=lambda done, total: tell(run_id, {"event": "note", "text": f"block {done} of {total}"}),
            )
    finally:
        delete_pictures(place)
    tell(run_id, {"event": "staged", "sha256": outcome.digest, "rows": outcome.num_rows})


def _cancel_watch(place: RunPlace) -> Callable[[str], bool]:
    """Looks for a request to stop in the run's place, at most once a second."""
    state = {"looked_at": 0.0, "found": 0.0}

    def is_cancelled(_: str) -> bool:
        now = time.monotonic()
        if not state["found"] and now - state["looked_at"] >= _CANCEL_POLL_S:
            state["looked_at"] = now
            state["found"] = float(_is_there(place, CANCEL))
        return bool(state["found"])

    return is_cancelled


def _is_there(place: RunPlace, name: str) -> bool:
    try:
        place.get(name)
    except ObjectMissingError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
