"""The scores of Mix-of-Show's evaluation, as pure functions of CLIP features.

Every function takes features as [n, dim] arrays of any scale and normalises them itself, so that a score
never depends on whether the caller did. Which picture and which prompt a row belongs to is the caller's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mos.errors import BadInputError

Array = NDArray[np.float64]

TEXT_ALIGNMENT_WEIGHT = 2.5
"""The factor of CLIPScore (Hessel et al., arXiv:2104.08718, eq. 1)."""


@dataclass(frozen=True, kw_only=True)
class ImageAlignment:
    """Likeness to the reference pictures under both readings of the published metric, one value a sample.

    Attributes:
        pairwise: Mean over all references of max(cos, 0): what the text of the paper says. [n]
        first_reference: max(cos, 0) with the first reference only: what its published code computes. [n]
    """

    pairwise: Array
    first_reference: Array


def normalised(features: ArrayLike) -> Array:
    """Scale each row of [n, dim] to length one.

    Raises:
        BadInputError: If the features are not two-dimensional, not finite, or a row is zero.
    """
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[0] == 0:
        raise BadInputError(f"features have shape {rows.shape}; expected [at least one row, dim]")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(rows).all() or not (lengths > 0).all():
        raise BadInputError("features hold a zero or non-finite row, so its direction is undefined")
    scaled: Array = rows / lengths
    return scaled


def similarities(left: ArrayLike, right: ArrayLike) -> Array:
    """Cosine of every row of `left` [n, dim] with every row of `right` [m, dim], as [n, m]."""
    cosines: Array = normalised(left) @ normalised(right).T
    return cosines


def text_alignment(image_features: ArrayLike, text_features: ArrayLike) -> Array:
    """CLIPScore of picture i with prompt i: 2.5 max(cos, 0), [n]."""
    images, texts = normalised(image_features), normalised(text_features)
    if images.shape != texts.shape:
        raise BadInputError(f"{images.shape[0]} pictures but {texts.shape[0]} prompts (or other feature widths)")
    cosines: Array = np.einsum("nd,nd->n", images, texts)
    return TEXT_ALIGNMENT_WEIGHT * np.maximum(cosines, 0.0)


def image_alignment(samples: ArrayLike, references: ArrayLike) -> ImageAlignment:
    """Likeness of each sample [n, dim] to the reference pictures [m, dim]."""
    clipped = np.maximum(similarities(samples, references), 0.0)
    return ImageAlignment(pairwise=clipped.mean(axis=1), first_reference=clipped[:, 0])


def identity_ranks(samples: ArrayLike, references: ArrayLike, distractors: Sequence[ArrayLike]) -> NDArray[np.int64]:
    """Rank of the true identity among distractors for each sample; 1 is best, ties count against it.

    Each identity is scored by the mean cosine of the sample with that identity's reference pictures.

    Args:
        samples: [n, dim].
        references: The true identity's pictures, [m, dim].
        distractors: For each other identity its pictures, [m_j, dim].

    Raises:
        BadInputError: If there is no distractor: then every rank is 1 and says nothing.
    """
    if not distractors:
        raise BadInputError("identity rank needs at least one distractor identity")
    own = similarities(samples, references).mean(axis=1)
    others = np.stack([similarities(samples, pictures).mean(axis=1) for pictures in distractors])
    ranks: NDArray[np.int64] = 1 + (others >= own).sum(axis=0).astype(np.int64)
    return ranks


def drift(before: ArrayLike, after: ArrayLike) -> Array:
    """How far a change of model moved the picture of the same prompt and seed: 1 - cos, [n]."""
    left, right = normalised(before), normalised(after)
    if left.shape != right.shape:
        raise BadInputError(f"drift pairs pictures: {left.shape[0]} before, {right.shape[0]} after")
    moved: Array = 1.0 - np.einsum("nd,nd->n", left, right)
    return np.maximum(moved, 0.0)


def diversity(samples: ArrayLike) -> float:
    """Mean of 1 - cos over all pairs of different samples of one prompt; 0 when all are alike.

    Raises:
        BadInputError: If there are fewer than two samples.
    """
    cosines = similarities(samples, samples)
    count = cosines.shape[0]
    if count < 2:
        raise BadInputError("diversity compares samples of one prompt: at least two seeds are needed")
    upper = cosines[np.triu_indices(count, k=1)]
    return float(max(0.0, 1.0 - upper.mean()))
