"""One slot's training state as bytes: safetensors with JSON metadata, never a pickle."""

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as to_bytes

from mos.errors import BadInputError
from mos.training.parameters import GROUPS, ConceptParameters

if TYPE_CHECKING:
    from mos.training.loop import Slot

_FORMAT = 1


def save(slot: "Slot", parameters: ConceptParameters, index: int) -> bytes:
    """Return parameters, moments, generator, data cursor and counters of one slot."""
    tensors = {"generator": slot.feed.generator.get_state()}
    for group in GROUPS:
        bank = parameters.banks[group]
        for name, matrix in (("values", bank.values), ("first", bank.first), ("second", bank.second)):
            tensors[f"{group}.{name}"] = matrix[index].detach().cpu().clone()
    document = {
        "format": _FORMAT,
        "order": slot.feed.order,
        "step": slot.step,
        "updates": slot.updates,
        "is_frozen": slot.is_frozen,
        "bad_steps": slot.bad_steps,
        "good_steps": slot.good_steps,
        "loss_scale": slot.loss_scale,
        "identity": _identity(slot, parameters),
    }
    # safetensors drops tensors without elements only in metadata order; empty groups are left out instead
    kept = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    return bytes(to_bytes(kept, metadata={"mos.checkpoint": json.dumps(document, sort_keys=True)}))


def restore(slot: "Slot", parameters: ConceptParameters, state: bytes) -> None:
    """Put a saved state into a fresh slot and add its rows to the banks.

    Raises:
        BadInputError: If the bytes are no checkpoint, or one of other pictures, options or another base.
    """
    tensors, document = _parse(slot.spec.key, state)
    if document.get("identity") != _identity(slot, parameters):
        raise BadInputError(
            f"slot {slot.spec.key}: the checkpoint belongs to other pictures, options or another base; "
            "start again without it"
        )
    rows: dict[str, list[torch.Tensor]] = {}
    for group in GROUPS:
        width = parameters.banks[group].width
        empty = torch.zeros(0)
        rows[group] = [tensors.get(f"{group}.{name}", empty) for name in ("values", "first", "second")]
        if any(row.shape != (width,) for row in rows[group]):
            raise BadInputError(f"slot {slot.spec.key}: the checkpoint's {group} does not have {width} values")
    slot.feed.generator.set_state(tensors["generator"])
    slot.feed.order = [int(index) for index in document["order"]]
    for name in ("step", "updates", "is_frozen", "bad_steps", "good_steps", "loss_scale"):
        setattr(slot, name, document[name])
    for group, (values, first, second) in rows.items():
        parameters.banks[group].append(values, first, second)


def _parse(key: str, state: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        tensors = load(state)
        length = int.from_bytes(state[:8], "little")
        header = json.loads(state[8 : 8 + length])
        document = json.loads(header["__metadata__"]["mos.checkpoint"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"slot {key}: the checkpoint cannot be read ({type(error).__name__}); start again"
        ) from error
    if document.get("format") != _FORMAT:
        raise BadInputError(f"slot {key}: checkpoint of format {document.get('format')}, this mos reads {_FORMAT}")
    return tensors, document


def _identity(slot: "Slot", parameters: ConceptParameters) -> dict[str, Any]:
    return {
        "data": slot.spec.data.digest(),
        "recipe": slot.spec.config.recipe(),
        "base": dict(parameters.base.facts.fingerprint),
    }
