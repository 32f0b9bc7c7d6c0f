"""The fusion solver of the paper written plainly: torch's LBFGS on the raw activations of one linear.

It is the peer of the tests and benchmarks. It keeps every input row in memory and multiplies all of them in every
evaluation, which is what the Gram form avoids.
"""

from collections.abc import Sequence

import torch

Tensor = torch.Tensor


def solve_reference(inputs: Sequence[Tensor], deltas: Sequence[Tensor], *, steps: int, history: int = 25) -> Tensor:
    """Minimise the mean of ((E - delta_i) x)^2 over all rows x of all concepts i, starting at E = 0.

    Args:
        inputs: X_i, [rows_i, in], one a concept.
        deltas: The concepts' updates, [out, in] each.
        steps: LBFGS steps, at learning rate 1 with strong-Wolfe line search.
        history: LBFGS history size.

    Returns:
        The best E seen, [out, in], in the dtype of the inputs.
    """
    rows = torch.cat(list(inputs))
    targets = torch.cat([x @ delta.T for x, delta in zip(inputs, deltas, strict=True)])
    update = torch.zeros_like(deltas[0], requires_grad=True)
    best_update, best_loss = torch.zeros_like(deltas[0]), float("inf")
    optimizer = torch.optim.LBFGS(
        [update],
        lr=1,
        max_iter=steps,
        max_eval=steps * 25,
        history_size=history,
        tolerance_grad=1e-16,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        nonlocal best_update, best_loss
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(rows @ update.T, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        if float(loss.detach()) < best_loss:
            best_update, best_loss = update.detach().clone(), float(loss.detach())
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return best_update
