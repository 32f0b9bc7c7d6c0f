"""Opens whatever can be put on a base: one trained concept (a file) or a fused model (a directory)."""

from pathlib import Path

from mos.artifact import read_artifact
from mos.concept import ConceptRef
from mos.edlora.adapter import Adapter
from mos.errors import NotFoundError
from mos.facts import BaseFacts
from mos.fusion.model import read_fused


def load_adapter(path: str | Path, facts: BaseFacts | None, *, ref: ConceptRef | None = None) -> Adapter:
    """Open a concept's file or a fused model's directory.

    Args:
        path: A `.safetensors` file of one concept, or a directory that `mos fuse` wrote.
        facts: Of the base it will run on; None skips the comparison.
        ref: The concept's name in a registry, which gives the word people type; None takes `local/<class word>`.

    Raises:
        NotFoundError: If there is nothing at that path.
        ArtifactError, BaseMismatchError: If it is malformed or belongs to another base.
    """
    path = Path(path)
    if path.is_dir():
        return read_fused(path, facts).adapter
    if not path.exists():
        raise NotFoundError(f"{path}: no such concept file or fused model; make one with mos fuse, or mos concept pull")
    edlora = read_artifact(path, facts)
    return edlora.adapter(ref if ref is not None else ConceptRef("local", edlora.card.class_word))
