"""The global mean against torch's own, and the layout of its gradient."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_modules.layers.pooling import global_mean, mean


def feature_maps() -> torch.Tensor:
    return torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("dims", [(2, 3), (1,), (3,)])
def test_a_mean_equals_torchs_in_value_and_two_gradients(dims: tuple[int, ...]) -> None:
    x = feature_maps()
    torch.testing.assert_close(mean(x, *dims), x.mean(dims, keepdim=True))
    assert torch.autograd.gradcheck(lambda x: mean(x, *dims), x)
    assert torch.autograd.gradgradcheck(lambda x: mean(x, *dims), x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_its_gradient_keeps_the_layout_of_the_layers_before_it(layout: torch.memory_format) -> None:
    x = torch.randn(2, 8, 4, 5).to(memory_format=layout)
    features = nn.Conv2d(8, 8, 3, padding=1).to(memory_format=layout)(x)
    gradients = []
    features.register_hook(gradients.append)
    global_mean(F.silu(features)).square().sum().backward()
    assert gradients[0].is_contiguous(memory_format=layout)
