"""Attention weights equal the factors between the modules' inputs and outputs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from experiments.reporting.attention_maps import Attention, attend, stretch, upsample
from lightning_modules.layers import attention
from lightning_modules.networks.enhanced_efficient_resnet import EnhancedEfficientResNet
from lightning_modules.networks.sam_resnet import SAMResNet
from lightning_modules.networks.se_resnet import SEResNet
from lightning_modules.resnet import ResNetClassifier

NETWORKS = {
    "se": lambda: SAMResNet(16, (1, 2, 1)),
    "cbam": lambda: SAMResNet(16, (1, 2, 1), attention="cbam"),
    "se after bn2": lambda: SEResNet(16, (1, 1, 1)),
    "dual": lambda: EnhancedEfficientResNet(4),
}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def products_of(network: nn.Module, *kinds: type[nn.Module]) -> dict[str, tuple[Tensor, Tensor]]:
    """The input and the output of each module of these kinds for `IMAGES`."""
    products: dict[str, tuple[Tensor, Tensor]] = {}
    for path, module in network.named_modules():
        if isinstance(module, kinds):

            def keep(_: nn.Module, given: Any, out: Tensor, path: str = path) -> None:
                products[path] = given[0].clone(), out.clone()

            module.register_forward_hook(keep)
    with torch.inference_mode():
        network.eval()(IMAGES.to(next(network.parameters()).dtype))
    assert products
    return products


@pytest.mark.parametrize("name", NETWORKS)
def test_each_module_multiplies_its_input_with_the_weights(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    products = products_of(
        network,
        attention.SqueezeExcitation,
        attention.ChannelAttention,
        attention.SpatialAttention,
    )
    found = attend(network, IMAGES)
    assert [x.module for x in found] == list(products)
    for x in found:
        given, out = products[x.module]
        weights = x.weights[:, :, None, None] if x.kind == "channel" else x.weights[:, None]
        torch.testing.assert_close(given * weights, out)
        assert 0 < x.weights.min() <= x.weights.max() < 1


def test_coordinate_attention_is_shown_over_channels_and_over_positions() -> None:
    torch.manual_seed(0)
    network = SAMResNet(16, (1, 1, 1), attention="coordinate").double()
    products = products_of(network, attention.CoordinateAttention)
    found = attend(network, IMAGES.double())
    assert [x.module for x in found[::2]] == [x.module for x in found[1::2]] == list(products)
    for over_channels, over_positions in zip(found[::2], found[1::2], strict=True):
        given, out = products[over_channels.module]
        weights = out / given
        assert (over_channels.kind, over_positions.kind) == ("channel", "spatial")
        torch.testing.assert_close(over_channels.weights, weights.mean((2, 3)))
        torch.testing.assert_close(over_positions.weights, weights.mean(1))


def test_the_network_is_left_without_hooks_and_a_second_look_sees_the_same() -> None:
    network = NETWORKS["dual"]()
    first, second = attend(network, IMAGES), attend(network, IMAGES)
    assert [x.module for x in first] == [x.module for x in second]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.weights, b.weights)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_without_attention_has_no_such_parameters() -> None:
    assert attend(ResNetClassifier(base_width=4, blocks=(1, 1, 1)).network, IMAGES) == []


def test_places_are_counted_from_one() -> None:
    places = [x.place for x in attend(NETWORKS["dual"](), IMAGES)]
    # Each of eight blocks has channel attention, then spatial attention.
    assert places[:4] == ["stage 1, block 1"] * 2 + ["stage 1, block 2"] * 2
    assert places[-2:] == ["stage 4, block 2", "extra conv"]
    assert Attention("whitening.0", "spatial", torch.zeros(1)).place == "whitening"


def test_maps_are_resized_as_torchvision_resizes_pictures() -> None:
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = resize(maps, [32, 32], InterpolationMode.BILINEAR, antialias=False)
    torch.testing.assert_close(upsample(maps, 32), theirs)


def test_each_map_reaches_from_0_to_1_unless_it_is_flat() -> None:
    maps = torch.tensor([[[0.2, 0.4], [0.3, 0.2]], [[0.9, 0.9], [0.9, 0.9]]])
    expected = torch.tensor([[[0.0, 1.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(stretch(maps), expected)
