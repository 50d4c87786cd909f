"""The networks: exact sizes, the effects of their flags, and properties of all networks."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from lightning_modules import ARCHITECTURES
from lightning_modules.layers.attention import (
    CBAM,
    ChannelAttention,
    CoordinateAttention,
    SpatialAttention,
    SqueezeExcitation,
)
from lightning_modules.layers.blocks import BasicBlock
from lightning_modules.networks import count_parameters
from lightning_modules.networks.enhanced_efficient_resnet import EnhancedEfficientResNet
from lightning_modules.networks.resnet import ResNet
from lightning_modules.networks.sam_resnet import SAMResNet
from lightning_modules.networks.se_resnet import SEResNet
from lightning_modules.networks.wide_resnet import PreActivationBlock, StochasticDepth, WideResNet

# All variants of all networks, so small that one core trains them in milliseconds.
SMALL = {
    "enhanced": partial(EnhancedEfficientResNet, base_width=4, dropout=0.0),
    "enhanced, pointwise, no last relu": partial(
        EnhancedEfficientResNet, 4, extra_conv="pointwise", relu_after_sum=False
    ),
    "enhanced, plain": partial(EnhancedEfficientResNet, 4, False, False, "none"),
    "enhanced, coordinate": partial(EnhancedEfficientResNet, 4, attention="coordinate"),
    "enhanced, gates": partial(EnhancedEfficientResNet, 4, dropout=0.0, routing="gates"),
    "sam": partial(SAMResNet, base_width=8, blocks=[2, 1, 1]),
    "sam, cbam": partial(SAMResNet, 8, (1, 1, 1), attention="cbam"),
    "sam, coordinate": partial(SAMResNet, 8, (1, 1, 1), attention="coordinate"),
    # SE's input is positive, so a ReLU unit is dead or alive for all images: use several units.
    "sam, relu": partial(SAMResNet, 8, (1, 1, 1), activation="relu", se_reduction=1),
    "resnet": partial(ResNet, base_width=8, blocks=(1, 2, 1)),
    "se": partial(SEResNet, base_width=8, blocks=(1, 1, 2)),
    "wide": partial(WideResNet, depth=10, widen_factor=0.5),
    "wide, dropout": partial(WideResNet, depth=16, widen_factor=1, dropout=0.3),
    "wide, stochastic depth": partial(WideResNet, 10, 0.5, stochastic_depth=0.2),
}
each_network = pytest.mark.parametrize("make", SMALL.values(), ids=SMALL.keys())


def parameters_of(cls: type[nn.Module], **arguments: Any) -> int:
    with torch.device("meta"):
        return count_parameters(cls(**arguments))


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("arch", "arguments", "parameters"),
    [
        ("enhanced_efficient_resnet", {}, 4_913_705),
        ("enhanced_efficient_resnet", {"extra_conv": "pointwise"}, 4_904_033),
        ("sam_resnet", {}, 4_733_610),
        ("sam_resnet", {"se": False}, 4_697_162),
        ("sam_resnet", {"se": False, "stem_se": True, "activation": "relu"}, 4_697_742),
        ("sam_resnet", {"attention": "cbam"}, 4_733_056),
        ("sam_resnet", {"attention": "coordinate"}, 4_737_362),
        ("resnet", {}, 4_697_162),
        ("se_resnet", {}, 4_733_610),
        ("wide_resnet", {}, 2_748_890),
        ("wide_resnet", {"depth": 16, "widen_factor": 3}, 1_549_530),
        ("wide_resnet", {"depth": 28, "widen_factor": 3}, 3_294_042),
        ("wide_resnet", {"depth": 28, "widen_factor": 4}, 5_849_050),
    ],
)
def test_sizes_are_the_published_ones(
    arch: str, arguments: dict[str, Any], parameters: int
) -> None:
    with torch.device("meta"):
        classifier = ARCHITECTURES[arch](**arguments)
    assert count_parameters(classifier.network) == parameters


def conv_bn_parameters(channels: int, out: int, kernel_size: int) -> int:
    return kernel_size**2 * channels * out + 2 * out


def basic_blocks_parameters(channels: int, widths: list[int], strides: list[int]) -> int:
    """Count the parameters of basic blocks by hand; each block's input has the previous width."""
    total = 0
    for width, stride in zip(widths, strides, strict=True):
        total += conv_bn_parameters(channels, width, 3) + conv_bn_parameters(width, width, 3)
        if stride != 1 or width != channels:
            total += conv_bn_parameters(channels, width, 1)
        channels = width
    return total


@pytest.mark.parametrize(
    ("base_width", "parameters"), [(24, 2_948_786), (31, 4_913_705), (40, 8_178_434)]
)
def test_enhanced_efficient_resnet_at_other_widths(base_width: int, parameters: int) -> None:
    widths = [base_width * factor for factor in (2, 2, 4, 4, 8, 8, 8, 8)]
    last = widths[-1]
    stem = conv_bn_parameters(3, base_width, 3)
    blocks = basic_blocks_parameters(base_width, widths, strides=[1, 1, 2, 1, 2, 1, 1, 1])
    attention = sum(2 * width * max(4, width // 16) + 2 * 7 * 7 for width in widths)
    extra = 9 * last + last * last + 2 * last + 2 * last * max(4, last // 16)
    by_hand = stem + blocks + attention + extra + 10 * last + 10
    assert parameters_of(EnhancedEfficientResNet, base_width=base_width) == by_hand == parameters


# Eight blocks, two per stage: channels times hidden channels, and a 7x7 filter for two maps.
CHANNEL_ATTENTION = 2 * 2 * (62 * 4 + 124 * 7 + 248 * 15 + 248 * 15)
SPATIAL_ATTENTION = 8 * 2 * 7 * 7
# Per block: a convolution to 8 channels with bias and BatchNorm, and two back with bias.
COORDINATE = 2 * sum(8 * width + 8 + 16 + 2 * (8 * width + width) for width in (62, 124, 248, 248))
SEPARABLE = 248 * 9 + 248 * 248 + 2 * 248
POINTWISE = 248 * 248 + 2 * 248


@pytest.mark.parametrize(
    ("arguments", "beyond_plain"),
    [
        ({"channel_attention": False, "spatial_attention": False, "extra_conv": "none"}, 0),
        ({"extra_conv": "none"}, 35_008),
        ({"extra_conv": "none", "channel_attention": False}, SPATIAL_ATTENTION),
        ({"extra_conv": "none", "spatial_attention": False}, CHANNEL_ATTENTION),
        ({"channel_attention": False, "spatial_attention": False}, SEPARABLE),
        ({"channel_attention": False}, SPATIAL_ATTENTION + SEPARABLE),
        ({"spatial_attention": False}, CHANNEL_ATTENTION + SEPARABLE + 2 * 248 * 15),
        ({"extra_conv": "pointwise"}, 35_008 + POINTWISE),
        ({"attention": "coordinate"}, COORDINATE + SEPARABLE + 2 * 248 * 15),
        ({"relu_after_sum": False, "dropout": 0.0}, 35_008 + SEPARABLE + 2 * 248 * 15),
    ],
)
def test_each_ablation_of_enhanced_efficient_resnet_removes_its_parameters(
    arguments: dict[str, Any], beyond_plain: int
) -> None:
    assert CHANNEL_ATTENTION + SPATIAL_ATTENTION == 35_008
    assert parameters_of(EnhancedEfficientResNet, **arguments) == 4_807_025 + beyond_plain


@pytest.mark.parametrize(
    ("arguments", "attention_per_block"),
    [
        ({"se": False}, lambda width: 0),
        ({}, lambda width: 2 * width * (width // 16) + width // 16 + width),
        ({"se_reduction": 8}, lambda width: 2 * width * (width // 8) + width // 8 + width),
        ({"attention": "cbam"}, lambda width: 2 * width * (width // 16) + 2 * 7 * 7),
        ({"attention": "coordinate"}, lambda width: 8 * (3 * width + 1) + 2 * 8 + 2 * width),
        ({"activation": "relu", "se": False}, lambda width: 0),
        ({"base_width": 32, "se": False}, lambda width: 0),
        ({"blocks": [1, 3, 2]}, lambda width: 2 * width * (width // 16) + width // 16 + width),
    ],
)
def test_sam_resnet_is_a_plain_resnet_plus_its_attention(
    arguments: dict[str, Any], attention_per_block: Callable[[int], int]
) -> None:
    base_width = arguments.get("base_width", 64)
    widths, strides = [], []
    for stage, count in enumerate(arguments.get("blocks", (4, 4, 3))):
        widths += [base_width * 2**stage] * count
        strides += [1 if stage == 0 else 2] + [1] * (count - 1)
    stem = conv_bn_parameters(3, base_width, 3)
    plain = stem + basic_blocks_parameters(base_width, widths, strides) + 10 * widths[-1] + 10
    attention = sum(map(attention_per_block, widths))
    assert parameters_of(SAMResNet, **arguments) == plain + attention


def test_a_plain_basic_block_is_torchvisions_forward_and_backward() -> None:
    theirs = TorchvisionBlock(
        8, 16, 2, downsample=nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
    )
    ours = BasicBlock(8, 16, stride=2)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(4, 8, 10, 10)
    expected, got = theirs(x), ours(x)
    torch.testing.assert_close(got, expected)
    expected.square().sum().backward()
    got.square().sum().backward()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize(("stride", "width"), [(1, 8), (1, 12), (2, 8)])
def test_a_pre_activation_block_follows_its_formula(stride: int, width: int) -> None:
    block = PreActivationBlock(8, width, stride)
    x = torch.randn(4, 8, 10, 10)
    activated = F.relu(F.batch_norm(x, None, None, training=True))
    out = F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
    out = F.relu(F.batch_norm(out, None, None, training=True))
    out = F.conv2d(out, block.conv2.weight, padding=1)
    if stride == 1 and width == 8:
        assert block.shortcut is None
        expected = x + out
    else:
        expected = F.conv2d(activated, block.shortcut.weight, stride=stride) + out
    torch.testing.assert_close(block(x), expected)


def blocks_of(network: nn.Module) -> list[BasicBlock]:
    return [module for module in network.modules() if isinstance(module, BasicBlock)]


def test_sams_attention_is_between_convolutions_and_the_others_before_the_sum() -> None:
    (block, *_) = blocks_of(SMALL["enhanced, coordinate"]())
    assert [type(layer) for layer in block.after_bn2] == [CoordinateAttention]
    kinds = {"sam": SqueezeExcitation, "sam, cbam": CBAM, "sam, coordinate": CoordinateAttention}
    for name, kind in kinds.items():
        for block in blocks_of(SMALL[name]()):
            assert isinstance(block.after_act1, kind)
            assert isinstance(block.after_bn2, nn.Identity)
    for block in blocks_of(SMALL["se"]()):
        assert isinstance(block.after_act1, nn.Identity)
        assert isinstance(block.after_bn2, SqueezeExcitation)
    for block in blocks_of(SMALL["enhanced"]()):
        assert isinstance(block.after_act1, nn.Identity)
        assert [type(layer) for layer in block.after_bn2] == [ChannelAttention, SpatialAttention]


def test_a_block_applies_attention_at_the_named_place() -> None:
    x = torch.randn(2, 8, 6, 6)
    block = BasicBlock(8, 8, activation="silu", after_act1=nn.Tanh(), after_bn2=nn.Sigmoid())
    inner = torch.tanh(F.silu(block.conv_bn1(x)))
    expected = F.silu(torch.sigmoid(block.conv_bn2(inner)) + x)
    torch.testing.assert_close(block(x), expected)


def test_the_extra_convolution_ends_in_bn_relu_and_if_separable_channel_attention() -> None:
    bn_relu = [nn.BatchNorm2d, nn.ReLU]
    for kind, expected in (
        ("separable", [nn.Conv2d, nn.Conv2d, *bn_relu, ChannelAttention]),
        ("pointwise", [nn.Conv2d, *bn_relu]),
        ("none", []),
    ):
        extra_conv = EnhancedEfficientResNet(base_width=4, extra_conv=kind).extra_conv
        assert [type(layer) for layer in flatten(extra_conv)] == expected


def flatten(layers: nn.Sequential) -> Iterator[nn.Module]:
    for layer in layers:
        yield from flatten(layer) if isinstance(layer, nn.Sequential) else (layer,)


@pytest.mark.parametrize(("name", "other"), [("silu", nn.ReLU), ("relu", nn.SiLU)])
def test_sam_resnet_has_one_activation_throughout(name: str, other: type[nn.Module]) -> None:
    network = SAMResNet(base_width=8, activation=name)
    assert not any(isinstance(module, other) for module in network.modules())


@pytest.mark.parametrize("relu_after_sum", [True, False])
def test_relu_after_sum_decides_whether_a_stage_can_be_negative(relu_after_sum: bool) -> None:
    network = EnhancedEfficientResNet(base_width=4, relu_after_sum=relu_after_sum)
    assert (network.stages(network.stem(images())).min() >= 0) == relu_after_sum


@pytest.mark.parametrize(
    ("cls", "shapes"),
    [
        (EnhancedEfficientResNet, [(62, 32, 32), (124, 16, 16), (248, 8, 8), (248, 8, 8)]),
        (SAMResNet, [(64, 32, 32), (128, 16, 16), (256, 8, 8)]),
        (SEResNet, [(64, 32, 32), (128, 16, 16), (256, 8, 8)]),
        (WideResNet, [(64, 32, 32), (128, 16, 16), (256, 8, 8)]),
    ],
)
def test_stages_have_the_papers_widths_and_resolutions(
    cls: type[nn.Module], shapes: list[tuple[int, int, int]]
) -> None:
    with torch.device("meta"):
        network = cls()
        features = network.stem(torch.empty(2, 3, 32, 32))
    for stage, shape in zip(network.stages, shapes, strict=True):
        features = stage(features)
        assert features.shape[1:] == shape


def test_wide_resnet_pools_the_output_of_a_last_bn_and_relu() -> None:
    network = WideResNet(depth=10, widen_factor=1).eval()
    features = network.stages(network.stem(images()))
    pooled = network.bn(features).clamp(min=0).mean((2, 3))
    torch.testing.assert_close(network(images()), network.head(pooled))


def test_dropout_acts_in_training_only() -> None:
    for network in (EnhancedEfficientResNet(4, dropout=0.5), WideResNet(10, 1, dropout=0.5)):
        network.train()
        assert not torch.equal(network(images()), network(images()))
        network.eval()
        assert torch.equal(network(images()), network(images()))


@each_network
def test_convolutions_start_with_unit_gain_backwards(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    for module in make().modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() >= 1000:
            reached_by_one_input = module.out_channels / module.groups * module.kernel_size[0] ** 2
            expected = (2 / reached_by_one_input) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            assert not module.bias.any()


def test_a_depthwise_convolution_starts_as_wide_as_its_nine_weights_ask() -> None:
    depthwise = EnhancedEfficientResNet(base_width=31).extra_conv[0]
    assert depthwise.groups == 248
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)


@each_network
def test_logits_are_ten_numbers_per_image(make: Callable[[], nn.Module]) -> None:
    logits = make()(images(2))
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@each_network
def test_gradient_reaches_every_parameter(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = make()
    F.cross_entropy(network(images(8)), torch.arange(8)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@each_network
def test_in_eval_mode_an_image_does_not_see_its_batch_mates(make: Callable[[], nn.Module]) -> None:
    network = make()
    network(images(8))  # changes BatchNorm's initial statistics
    network.eval()
    together = network(images())
    alone = torch.cat([network(image[None]) for image in images()])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@each_network
def test_channels_last_gives_the_same_logits(make: Callable[[], nn.Module]) -> None:
    network = make().eval()
    expected = network(images())
    network.to(memory_format=torch.channels_last)
    logits = network(images().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["enhanced", "sam", "sam, cbam", "sam, coordinate", "se", "wide"])
def test_the_forward_pass_compiles_into_one_graph(name: str) -> None:
    network = SMALL[name]().eval()
    expected = network(images())
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), expected)


@each_network
def test_the_images_are_left_as_they_were(make: Callable[[], nn.Module]) -> None:
    batch = images()
    make()(batch)
    assert torch.equal(batch, images())


@pytest.mark.parametrize(
    ("cls", "argument", "value"),
    [
        (EnhancedEfficientResNet, "base_width", 0),
        (EnhancedEfficientResNet, "extra_conv", "depthwise"),
        (EnhancedEfficientResNet, "dropout", 1.0),
        (SAMResNet, "base_width", -1),
        (SAMResNet, "blocks", (4, 4)),
        (SAMResNet, "blocks", (4, 0, 3)),
        (SAMResNet, "se_reduction", 0),
        (SAMResNet, "activation", "gelu"),
        (SAMResNet, "attention", "eca"),
        (EnhancedEfficientResNet, "attention", "eca"),
        (EnhancedEfficientResNet, "routing", "always"),
        (WideResNet, "routing", "always"),
        (ResNet, "activation", "gelu"),
        (SEResNet, "base_width", 0),
        (SEResNet, "blocks", (1, 1)),
        (SEResNet, "se_reduction", -16),
        (WideResNet, "depth", 4),
        (WideResNet, "depth", 18),
        (WideResNet, "widen_factor", 0.0),
        (WideResNet, "widen_factor", float("nan")),
        (WideResNet, "widen_factor", float("inf")),
        (WideResNet, "dropout", -0.1),
        (WideResNet, "stochastic_depth", 1.0),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(
    cls: type[nn.Module], argument: str, value: Any
) -> None:
    shown = str(list(value) if isinstance(value, tuple) else value)
    with pytest.raises(ValueError, match=f"^{argument} must be .*, got ") as error:
        cls(**{argument: value})
    assert shown in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("attention", ["cbam", "coordinate"])
def test_a_kind_of_attention_without_attention_is_a_contradiction(attention: str) -> None:
    with pytest.raises(ValueError, match=rf"^attention must be 'se'.* got '{attention}'"):
        SAMResNet(se=False, attention=attention)


@pytest.mark.parametrize("flag", ["channel_attention", "spatial_attention"])
def test_coordinate_attention_replaces_both_modules_or_neither(flag: str) -> None:
    with pytest.raises(ValueError, match=r"^attention must be 'dual'.* got 'coordinate'"):
        EnhancedEfficientResNet(attention="coordinate", **{flag: False})


def test_stochastic_depth_leaves_out_later_blocks_more_often() -> None:
    network = WideResNet(depth=16, widen_factor=0.5, stochastic_depth=0.3)
    drops = [block.drop.p for stage in network.stages for block in stage]
    assert drops == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25, 0.3])


def test_a_skipped_block_returns_its_input_and_evaluation_skips_none() -> None:
    torch.manual_seed(0)
    block, never = (PreActivationBlock(8, 8, drop=drop) for drop in (0.5, 0.0))
    never.load_state_dict(block.state_dict())
    x = torch.randn(64, 8, 4, 4)
    result = block(x)
    left_out = (result == x).flatten(1).all(1)
    assert 16 < left_out.sum() < 48
    grown = x + 2 * (never(x) - x)
    torch.testing.assert_close(result[~left_out], grown[~left_out])
    torch.testing.assert_close(block.eval()(x), never.eval()(x))


def test_fractional_widen_factors_round_the_widths() -> None:
    network = WideResNet(depth=10, widen_factor=3.5)
    assert [stage[0].conv2.out_channels for stage in network.stages] == [56, 112, 224]
    assert WideResNet(10, 0.3).head.in_features == 19  # 19.2 rounded down


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_the_quick_version_is_the_same_network_made_small(arch: str) -> None:
    cls = ARCHITECTURES[arch]
    with torch.device("meta"):
        quick, full = cls(**cls.quick), cls()
    assert cls.grows in cls.quick
    assert count_parameters(quick.network) < count_parameters(full.network) / 10


@pytest.mark.parametrize("training", [True, False])
def test_stochastic_depth_equals_torchvisions(training: bool) -> None:
    features = torch.randn(64, 3, 4, 4)
    answers = []
    for module in (StochasticDepth(0.3), torchvision.ops.StochasticDepth(0.3, "row")):
        torch.manual_seed(0)
        answers.append(module.train(training)(features))
    assert torch.equal(*answers)
