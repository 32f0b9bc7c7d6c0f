"""What is lost when a word that differs from layer to layer must become one vector."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity

from mos.edlora.adapter import ConceptWords


@dataclass(frozen=True, kw_only=True)
class EmbeddingLoss:
    """How well one vector stands for a word's rows.

    Args:
        ref: concept the word belongs to.
        word: the concept's own word.
        encoder: text encoder.
        mean_cosine: mean over the layers of the cosine between the layer mean and the layer's row; 1 is no loss.
        least_cosine: the smallest of them.
        norm_ratio: norm of the layer mean over the mean norm of the rows.
    """

    ref: str
    word: str
    encoder: str
    mean_cosine: float
    least_cosine: float
    norm_ratio: float

    @property
    def is_exact(self) -> bool:
        """Whether all layers share one row, so that nothing is lost."""
        return self.least_cosine == 1.0 and self.norm_ratio == 1.0

    def line(self) -> str:
        """Return one line for people."""
        if self.is_exact:
            return f"{self.word} ({self.encoder}): exact, all layers share one embedding"
        return (
            f"{self.word} ({self.encoder}): the layer mean has cosine {self.mean_cosine:.3f} to the layers' own "
            f"embeddings (least {self.least_cosine:.3f}) and {self.norm_ratio:.2f} of their norm"
        )


def layer_mean(rows: Tensor) -> Tensor:
    """Reduce a word [layers, dim] to one vector [dim]: its row where all are equal (exact), else the mean."""
    if bool((rows == rows[:1]).all()):
        return rows[0]
    return rows.mean(dim=0)


def measure_losses(vocabulary: Sequence[ConceptWords]) -> tuple[EmbeddingLoss, ...]:
    """Measure, for every word and encoder, what its layer mean loses."""
    return tuple(
        _measure(concept.ref, word, encoder, rows)
        for concept in vocabulary
        for encoder, embeddings in concept.embeddings.items()
        for word, rows in zip(concept.words, embeddings, strict=True)
    )


def _measure(ref: str, word: str, encoder: str, rows: Tensor) -> EmbeddingLoss:
    rows = rows.double()
    mean = layer_mean(rows)
    if bool((rows == rows[:1]).all()):
        return EmbeddingLoss(ref=ref, word=word, encoder=encoder, mean_cosine=1.0, least_cosine=1.0, norm_ratio=1.0)
    cosines = cosine_similarity(rows, mean.unsqueeze(0), dim=-1)
    return EmbeddingLoss(
        ref=ref,
        word=word,
        encoder=encoder,
        mean_cosine=float(cosines.mean()),
        least_cosine=float(cosines.min()),
        norm_ratio=float(mean.norm() / rows.norm(dim=-1).mean()),
    )
