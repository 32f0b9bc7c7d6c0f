"""An evaluation as a job of a cluster: what it needs of this machine travels to the run's private place.

Model files, reference pictures and a suite of one's own lie there under `pictures/`, which is emptied when the run
ends, however it ends; published models, the base and the scorer are opened where the job runs.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.checkpoint import RunPlace
from cluster.runs import RunBook, RunRecord
from jobs.evaluate import EvaluationRequest, read_pictures
from jobs.opening import named_file

if TYPE_CHECKING:
    from cluster.evaluation import EvaluationJob

_INPUTS = "pictures/inputs"


def submit_remote_evaluation(
    request: EvaluationRequest, job: "EvaluationJob", address: str, *, is_waiting: bool
) -> dict[str, Any]:
    """Send an evaluation that has been checked here as a Ray job.

    Args:
        request: As it was typed.
        job: What came of preparing it here; its blocks name the run.
        address: URL of the job server.
        is_waiting: Whether to wait until its scores are there.
    """
    from cluster.places import RegistryPlaces
    from jobs.remote_runs import check_reachable, let_last_job_end, send
    from jobs.runs import is_at_work, known_run, outcome_of, wait_for

    check_reachable(request.registry_url, address)
    first = min(job.truths)
    blocks = "\n".join(sorted(block.name for block in job.blocks()))
    owner = first.partition("/")[0]
    run_id = f"evaluation-{owner}-{hashlib.sha256(blocks.encode()).hexdigest()[:12]}"
    book = RunBook()
    known = known_run(book, run_id, request.registry_url, address)
    if known is not None and is_at_work(book, known, address):
        return outcome_of(wait_for(run_id) if is_waiting else known)
    record = RunRecord(
        run_id=run_id,
        kind="evaluation",
        owner=owner,
        subject=f"evaluation of {', '.join(sorted(job.truths))}",
        spec=as_json(request) | {"registry": request.registry_url, "digest": job.config.digest},
        address=address,
    )
    let_last_job_end(book, run_id, address)
    record = book.start(record)
    document = stage_inputs(RegistryPlaces(request.registry_url)(run_id), request)
    metadata = {"kind": "evaluation", "owner": owner, "concept": ", ".join(sorted(job.truths))}
    record = send(record, request.registry_url, {"kind": "evaluation", "request": document}, metadata)
    return outcome_of(wait_for(run_id) if is_waiting else record)


def as_json(request: EvaluationRequest) -> dict[str, Any]:
    """The request as JSON can hold it."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(request), default=str))
    return plain


def from_json(data: Mapping[str, Any]) -> EvaluationRequest:
    """The inverse of `as_json`."""
    names = {item.name for item in dataclasses.fields(EvaluationRequest)}
    values = {name: value for name, value in data.items() if name in names}
    references = {ref: Path(folder) for ref, folder in values["references"].items()}
    return EvaluationRequest(**values | {"models": tuple(values["models"]), "references": references})


def stage_inputs(place: RunPlace, request: EvaluationRequest) -> dict[str, Any]:
    """Send files of this machine to the run's place; returns the request with their names there."""
    document = as_json(request)
    models: list[dict[str, Any]] = []
    for number, model in enumerate(request.models):
        given, path = named_file(model)
        if path is None:
            models.append({"name": model})
            continue
        files = [path] if path.is_file() else sorted(item for item in path.iterdir() if item.is_file())
        for file in files:
            place.put(f"{_INPUTS}/models/{number}/{file.name}", file.read_bytes())
        names = [file.name for file in files]
        models.append({"given": given, "folder": "" if path.is_file() else path.name, "files": names})
    references = {}
    for number, (ref, folder) in enumerate(sorted(request.references.items())):
        pictures = read_pictures(folder)
        for index, picture in enumerate(pictures):
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            place.put(f"{_INPUTS}/references/{number}/{index:04d}.png", buffer.getvalue())
        references[ref] = len(pictures)
    if Path(request.suite).is_file():
        place.put(f"{_INPUTS}/suite.toml", Path(request.suite).read_bytes())
        document["suite"] = ""
    return document | {"models": models, "references": references}


def fetch_inputs(place: RunPlace, document: Mapping[str, Any], folder: Path) -> EvaluationRequest:
    """Bring staged files into `folder` and name them in the request."""
    models = [_fetch_model(place, number, model, folder) for number, model in enumerate(document["models"])]
    references = {}
    for number, (ref, count) in enumerate(sorted(document["references"].items())):
        target = folder / "references" / str(number)
        target.mkdir(parents=True)
        for index in range(count):
            name = f"{index:04d}.png"
            (target / name).write_bytes(place.get(f"{_INPUTS}/references/{number}/{name}"))
        references[ref] = target
    suite = document["suite"]
    if not suite:
        suite = str(folder / "suite.toml")
        Path(suite).write_bytes(place.get(f"{_INPUTS}/suite.toml"))
    return from_json(dict(document) | {"models": models, "references": references, "suite": suite})


def _fetch_model(place: RunPlace, number: int, model: Mapping[str, Any], folder: Path) -> str:
    if "name" in model:
        return str(model["name"])
    target = folder / "models" / str(number) / Path(model["folder"]).name
    target.mkdir(parents=True)
    names = [Path(name).name for name in model["files"]]
    for name in names:
        (target / name).write_bytes(place.get(f"{_INPUTS}/models/{number}/{name}"))
    path = target if model["folder"] else target / names[0]
    return f"{model['given']}={path}" if model["given"] else str(path)
