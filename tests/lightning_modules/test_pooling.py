"""The global mean against torch's own, and the layout of its gradient."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_modules.layers.pooling import global_mean


def feature_maps() -> torch.Tensor:
    return torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)


def test_global_mean_is_torchs_with_its_gradient_and_that_ones_gradient() -> None:
    x = feature_maps()
    torch.testing.assert_close(global_mean(x), x.mean((2, 3), keepdim=True))
    assert torch.autograd.gradcheck(global_mean, x)
    assert torch.autograd.gradgradcheck(global_mean, x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_its_gradient_keeps_the_layout_of_the_layers_before_it(layout: torch.memory_format) -> None:
    x = torch.randn(2, 8, 4, 5).to(memory_format=layout)
    features = nn.Conv2d(8, 8, 3, padding=1).to(memory_format=layout)(x)
    gradients = []
    features.register_hook(gradients.append)
    global_mean(F.silu(features)).square().sum().backward()
    assert gradients[0].is_contiguous(memory_format=layout)
