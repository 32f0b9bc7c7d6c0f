"""Fusion problems at the shapes of Stable Diffusion 1.5, with stated spectra, for the fusion benchmark.

Inputs are `x = mean + (z * spectrum) R`: z normal, R one rotation for all concepts, spectrum falling as 1/sqrt(k) for
the spatial layers and as 1/k for tokens, and a mean of twice the spectrum's norm that all concepts share, as features
behind a layer norm do. A concept's tokens are a few base rows with 5 % noise (16 layers encode nearly the same words),
its held-out rows the same with 30 %. Updates have rank 4.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from mos.fusion.problem import LinearProblem, SiteProblem, regularised

Tensor = torch.Tensor
RANK = 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One kind of input site of SD 1.5.

    Attributes:
        stage: Which of the three.
        width: Of its inputs.
        out: Of its linears.
        linears: How many share it.
        sites: How many of this kind the model has.
        rows: Input rows a concept.
        steps: LBFGS steps of the paper.
    """

    stage: str
    width: int
    out: int
    linears: int
    sites: int
    rows: int
    steps: int

    @property
    def name(self) -> str:
        """Name in the table."""
        return f"{self.stage} {self.width}->{self.out}"


SD15 = (
    Shape(stage="text", width=768, out=768, linears=3, sites=12, rows=176, steps=500),
    Shape(stage="text (out)", width=768, out=768, linears=1, sites=12, rows=176, steps=500),
    Shape(stage="cross", width=768, out=320, linears=2, sites=5, rows=6, steps=500),
    Shape(stage="cross", width=768, out=640, linears=2, sites=5, rows=6, steps=500),
    Shape(stage="cross", width=768, out=1280, linears=2, sites=6, rows=6, steps=500),
    Shape(stage="spatial qkv", width=320, out=320, linears=3, sites=5, rows=4096 * 20, steps=50),
    Shape(stage="spatial", width=320, out=320, linears=1, sites=15, rows=4096 * 20, steps=50),
    Shape(stage="spatial qkv", width=640, out=640, linears=3, sites=5, rows=1024 * 20, steps=50),
    Shape(stage="spatial", width=640, out=640, linears=1, sites=15, rows=1024 * 20, steps=50),
    Shape(stage="spatial qkv", width=1280, out=1280, linears=3, sites=6, rows=256 * 20, steps=50),
    Shape(stage="spatial", width=1280, out=1280, linears=1, sites=18, rows=256 * 20, steps=50),
)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Draws rows for one shape; equal seeds give equal rows."""

    shape: Shape
    is_token: bool
    rotation: Tensor
    spectrum: Tensor
    mean: Tensor
    generator: torch.Generator = field(repr=False)

    def rows(self, count: int) -> Tensor:
        """Fresh rows [count, in], float32."""
        noise = torch.randn(count, len(self.spectrum), generator=self.generator)
        return (noise * self.spectrum) @ self.rotation + self.mean

    def near(self, anchors: Tensor, count: int, noise: float) -> Tensor:
        """Rows that repeat `anchors` in turn, with relative noise."""
        repeats = anchors[torch.arange(count) % len(anchors)]
        return repeats + noise * (self.rows(count) - self.mean)


def inputs_of(shape: Shape, seed: int = 0) -> Inputs:
    """The distribution of a shape's inputs."""
    generator = torch.Generator().manual_seed(seed)
    is_token = shape.stage.startswith(("text", "cross"))
    spectrum = torch.arange(1, shape.width + 1).float() ** (-1.0 if is_token else -0.5)
    rotation = torch.linalg.qr(torch.randn(shape.width, shape.width, generator=generator)).Q
    direction = torch.randn(shape.width, generator=generator)
    mean = 2 * spectrum.norm() * direction / direction.norm()
    return Inputs(shape=shape, is_token=is_token, rotation=rotation, spectrum=spectrum, mean=mean, generator=generator)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Concepts at one site: LoRA factors by linear and concept, and rows to fit, to check and to leave alone."""

    shape: Shape
    ups: list[list[Tensor]]
    downs: list[list[Tensor]]
    fitted: list[Tensor]
    held_out: list[Tensor]
    generic: Tensor
    drift: Tensor

    def site(self, *, generic_weight: float = 0.0, ridge: float = 0.0, steps: int | None = None) -> SiteProblem:
        """The case on Gram matrices."""
        grams = [gram_of(rows) for rows in self.fitted]
        return site_of(self, grams, generic_weight=generic_weight, ridge=ridge, steps=steps)

    def figures(self, update: np.ndarray, linear: int = 0) -> dict[str, float]:
        """fit, held_out and drift of an update [out, in] of one linear, as fractions of what the concepts do."""
        error: dict[str, float] = {}
        for name, groups in (("fit", self.fitted), ("held_out", self.held_out)):
            wrong = own = 0.0
            for rows, up, down in zip(groups, self.ups[linear], self.downs[linear], strict=True):
                want = (up @ down).double().numpy()
                gram = gram_of(rows)
                wrong += _energy(update - want, gram)
                own += _energy(want, gram)
            error[name] = (wrong / own) ** 0.5
        gram = gram_of(self.drift)
        concepts = [
            _energy((up @ down).double().numpy(), gram)
            for up, down in zip(self.ups[linear], self.downs[linear], strict=True)
        ]
        error["drift"] = (_energy(update, gram) / (sum(concepts) / len(concepts))) ** 0.5
        return error


def case_of(shape: Shape, concepts: int = 3, *, rows: int | None = None, seed: int = 0) -> Case:
    """Draw a case; `rows` replaces the shape's rows a concept.

    The fitted rows and the first linear depend on widths, rows and seed alone: shapes that differ in the number of
    their linears share them, and with them what the reference finds.
    """
    inputs = inputs_of(shape, seed)
    count = rows or shape.rows
    if inputs.is_token:
        anchors = [inputs.rows(min(11, count)) for _ in range(concepts)]
        fitted = [inputs.near(own, count, 0.05) for own in anchors]
        held_out = [inputs.near(own, count, 0.3) for own in anchors]
    else:
        fitted = [inputs.rows(count) for _ in range(concepts)]
        held_out = [inputs.rows(count) for _ in range(concepts)]

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=inputs.generator)

    factors = [
        [(normal(shape.out, RANK), normal(RANK, shape.width) / shape.width) for _ in range(concepts)]
        for _ in range(shape.linears)
    ]
    return Case(
        shape=shape,
        ups=[[up for up, _ in linear] for linear in factors],
        downs=[[down for _, down in linear] for linear in factors],
        fitted=fitted,
        held_out=held_out,
        generic=inputs.rows(96),
        drift=inputs.rows(32),
    )


def gram_of(rows: Tensor) -> np.ndarray:
    """X^T X in float64."""
    precise = rows.double()
    return (precise.T @ precise).numpy()


def site_of(
    case: Case,
    grams: list[np.ndarray],
    *,
    generic_weight: float = 0.0,
    ridge: float = 0.0,
    steps: int | None = None,
) -> SiteProblem:
    """The problem of a case whose Gram matrices are known."""
    linears = {
        f"linear-{index}": LinearProblem(
            ups=tuple(up.numpy() for up in ups),
            projected=tuple(down.double().numpy() @ gram for down, gram in zip(downs, grams, strict=True)),
        )
        for index, (ups, downs) in enumerate(zip(case.ups, case.downs, strict=True))
    }
    return SiteProblem(
        site=case.shape.name,
        matrix=regularised(
            sum(grams[1:], grams[0]), generic=gram_of(case.generic), generic_weight=generic_weight, ridge=ridge
        ),
        num_rows=sum(len(rows) for rows in case.fitted),
        linears=linears,
        steps=case.shape.steps if steps is None else steps,
    )


def _energy(update: np.ndarray, gram: np.ndarray) -> float:
    return float(np.einsum("ij,ij->", update @ gram, update))
