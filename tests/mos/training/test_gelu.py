import contextlib

import pytest
import torch
from transformers.activations import QuickGELUActivation

from mos.random_base import random_base
from mos.training.gelu import FusedQuickGELU, fused_activations


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)]
)
def test_it_is_the_plain_activation_forward_and_backward(dtype, tolerance):
    inputs = torch.linspace(-20, 20, 2001, dtype=dtype)
    found, expected = (inputs.clone().requires_grad_() for _ in range(2))
    FusedQuickGELU()(found).square().sum().backward()
    QuickGELUActivation()(expected).square().sum().backward()
    torch.testing.assert_close(FusedQuickGELU()(inputs), QuickGELUActivation()(inputs), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.grad, expected.grad, rtol=tolerance, atol=40 * tolerance)


def test_it_is_put_in_place_of_clips_own_and_taken_out_again():
    model = random_base().text_encoder
    own = [module for module in model.modules() if isinstance(module, QuickGELUActivation)]
    assert len(own) == 2
    with contextlib.suppress(KeyboardInterrupt), fused_activations(model):
        assert sum(isinstance(module, FusedQuickGELU) for module in model.modules()) == 2
        assert not any(isinstance(module, QuickGELUActivation) for module in model.modules())
        raise KeyboardInterrupt
    assert [module for module in model.modules() if isinstance(module, QuickGELUActivation)] == own
