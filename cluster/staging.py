"""What lies in a run's private place besides its checkpoints: the owner's pictures, and the unsigned result.

    pictures/index.json            captions, repeats and digests, in order
    pictures/000.png, 000.mask.png pixels and masks, numbered: file names and EXIF stay with their owner
    staged/<sha256>.safetensors    the trained concept, not yet signed
    staged/report.json             its digest, the steps, the losses; the first one written stands
    grids/000100.png               the concept at several LoRA scales after so many steps, where asked for

Pictures are there only while their run needs them.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

from cluster.checkpoint import RunPlace
from mos.errors import CheckFailedError, TryAgainError
from registry.errors import ObjectExistsError, ObjectMissingError

if TYPE_CHECKING:
    from mos.training import ConceptData

STAGED_REPORT = "staged/report.json"
GRIDS = "grids"
_PICTURES = "pictures"
_INDEX = "pictures/index.json"


def neutral(data: "ConceptData") -> "ConceptData":
    """The same pictures with numbers for names, so that the result does not depend on file names."""
    pictures = [dataclasses.replace(picture, name=f"{number:03d}") for number, picture in enumerate(data.pictures)]
    return dataclasses.replace(data, pictures=tuple(pictures))


def stage_pictures(place: RunPlace, data: "ConceptData") -> int:
    """Send a concept's pictures to the run's place, the index last; returns the bytes sent."""
    objects: dict[str, bytes] = {}
    entries = []
    for picture in neutral(data).pictures:
        names = {"pixels": f"{picture.name}.png"}
        objects[names["pixels"]] = _png(picture.pixels)
        if picture.mask is not None:
            names["mask"] = f"{picture.name}.mask.png"
            objects[names["mask"]] = _png(picture.mask)
        entries.append(names | {"caption": picture.caption, "repeats": picture.repeats})
    for name, content in objects.items():
        place.put(f"{_PICTURES}/{name}", content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in objects.items()}
    index = {
        "format": 1,
        "name": data.name,
        "class_word": data.class_word,
        "kind": data.kind,
        "title": data.title,
        "pictures": entries,
        "sha256": digests,
    }
    place.put(_INDEX, json.dumps(index, sort_keys=True).encode())
    return sum(map(len, objects.values()))


def read_pictures(place: RunPlace) -> "ConceptData":
    """Read staged pictures back.

    Raises:
        TryAgainError: If none are staged (they are deleted when a run ends).
        CheckFailedError: If bytes differ from what was sent.
    """
    from mos.training import ConceptData, Picture

    try:
        index = json.loads(place.get(_INDEX))
    except ObjectMissingError:
        raise TryAgainError("no pictures are staged for this run; submit it again") from None
    digests = index["sha256"]
    pictures = [
        Picture(
            name=f"{number:03d}",
            pixels=_pixels(place, entry["pixels"], digests),
            mask=_pixels(place, entry["mask"], digests) if "mask" in entry else None,
            caption=entry["caption"],
            repeats=entry["repeats"],
        )
        for number, entry in enumerate(index["pictures"])
    ]
    return ConceptData(
        name=index["name"],
        class_word=index["class_word"],
        kind=index["kind"],
        title=index["title"],
        pictures=tuple(pictures),
    )


def delete_pictures(place: RunPlace) -> int:
    """Remove every staged picture, the index first; returns how many objects there were."""
    names = list(place.names(_PICTURES))
    place.delete(_INDEX)
    for name in names:
        place.delete(name)
    return len(names)


def stage_result(place: RunPlace, artifact: bytes, report: dict[str, Any]) -> str:
    """Stage an unsigned artifact and then the report that makes it the run's result.

    Returns:
        The digest of the result: another attempt's, if that was first.
    """
    digest = hashlib.sha256(artifact).hexdigest()
    place.create(_artifact_name(digest), artifact)
    document = json.dumps(report | {"sha256": digest}, sort_keys=True).encode()
    with contextlib.suppress(ObjectExistsError):
        place.create(STAGED_REPORT, document)
    return str(json.loads(place.get(STAGED_REPORT))["sha256"])


def read_staged_report(place: RunPlace) -> dict[str, Any] | None:
    """The report of a staged result, or None while there is none."""
    try:
        return dict(json.loads(place.get(STAGED_REPORT)))
    except ObjectMissingError:
        return None


def read_staged(place: RunPlace) -> tuple[bytes, dict[str, Any]]:
    """The staged artifact and its report, checked against each other.

    Raises:
        TryAgainError: If nothing is staged.
        CheckFailedError: If the bytes are not those the report speaks of.
    """
    report = read_staged_report(place)
    if report is None:
        raise TryAgainError("no result is staged for this run yet; `mos jobs wait` waits for it")
    artifact = place.get(_artifact_name(report["sha256"]))
    if hashlib.sha256(artifact).hexdigest() != report["sha256"]:
        raise CheckFailedError("the staged artifact is not the one its report speaks of; retry the run")
    return artifact, report


def grid_name(step: int) -> str:
    """The name of the grid drawn after so many steps."""
    return f"{GRIDS}/{step:06d}.png"


def _artifact_name(digest: str) -> str:
    return f"staged/{digest}.safetensors"


def _png(pixels: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(place: RunPlace, name: str, digests: dict[str, str]) -> Any:
    import numpy as np
    from PIL import Image

    content = place.get(f"{_PICTURES}/{name}")
    if hashlib.sha256(content).hexdigest() != digests[name]:
        raise CheckFailedError(f"staged picture {name}: its bytes changed on the way; submit again")
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        return np.asarray(image)
