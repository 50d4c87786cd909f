"""Gates that let images skip residual blocks."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_modules.enhanced_efficient_resnet import EnhancedEfficientResNetClassifier
from lightning_modules.layers.routing import (
    Gate,
    gates_of,
    logistic_noise,
    straight_through,
    target_rate_loss,
)
from lightning_modules.networks import count_parameters
from lightning_modules.networks.enhanced_efficient_resnet import EnhancedEfficientResNet
from lightning_modules.networks.wide_resnet import WideResNet
from lightning_modules.wide_resnet import WideResNetClassifier

NETWORKS = {
    "enhanced": lambda routing: EnhancedEfficientResNet(4, dropout=0.0, routing=routing),
    "wide": lambda routing: WideResNet(16, 0.5, routing=routing),
}
each_network = pytest.mark.parametrize("name", NETWORKS)


def images(n):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def routed(name):
    """A network in evaluation mode; images differ in the gates that they open."""
    torch.manual_seed(0)
    network = NETWORKS[name]("gates")
    network(images(16))  # updates BatchNorm's statistics
    network.eval()
    for gate in gates_of(network):
        seen = []
        hook = gate.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        network(images(16))
        hook.remove()
        nn.init.normal_(gate.fc2.weight)
        logits = gate.fc2(gate.fc1(seen[0].mean((2, 3))).relu())
        # The threshold is between two images, so no logit is almost zero.
        gate.fc2.bias.data -= logits.flatten().sort().values[7:9].mean()
    return network.requires_grad_(False)


def test_gates_are_the_straight_through_gumbel_softmax_of_two_classes():
    torch.manual_seed(0)
    logits = torch.randn(1000, requires_grad=True)
    both = torch.stack([torch.zeros_like(logits), logits], dim=1)
    torch.manual_seed(1)
    expected = F.gumbel_softmax(both, tau=0.7, hard=True)[:, 1]
    torch.manual_seed(1)
    gumbels = -torch.empty(1000, 2).exponential_().log()
    gates = straight_through(logits, gumbels[:, 1] - gumbels[:, 0], temperature=0.7)
    torch.testing.assert_close(gates, expected)
    weights = torch.randn(1000)
    (ours,) = torch.autograd.grad((weights * gates).sum(), logits)
    (theirs,) = torch.autograd.grad((weights * expected).sum(), logits)
    torch.testing.assert_close(ours, theirs)


def test_the_gradient_of_a_gate_is_its_probabilitys():
    logits = torch.tensor([-2.0, 0.5], requires_grad=True)
    gates = straight_through(logits, torch.tensor([3.0, -1.0]))
    assert gates.tolist() == pytest.approx([1, 0])
    gates.sum().backward()
    p = torch.tensor([1.0, -0.5]).sigmoid()
    torch.testing.assert_close(logits.grad, p * (1 - p))


def test_gates_open_as_often_as_their_logits_say():
    noise = logistic_noise(torch.rand(100_000, generator=torch.Generator().manual_seed(0)))
    rate = straight_through(torch.tensor(0.85).logit(), noise).mean().item()
    assert rate == pytest.approx(0.85, abs=0.01)
    assert logistic_noise(torch.zeros(1)).isfinite().all()


def test_the_target_rate_loss_by_hand():
    rates = [torch.tensor(0.9), torch.tensor(0.5), torch.tensor(0.6)]
    assert target_rate_loss(rates, 0.6).item() == pytest.approx((0.09 + 0.01) / 3)


@pytest.mark.parametrize(
    ("cls", "plain", "widths"),
    [
        (EnhancedEfficientResNet, 4_913_705, [31, 62, 62, 124, 124, 248, 248, 248]),
        (WideResNet, 2_748_890, [16, 64, 64, 128, 128, 256]),
    ],
)
def test_each_block_has_a_gate_of_sixteen_hidden_units_before_it(cls, plain, widths):
    with torch.device("meta"):
        network = cls(routing="gates")
    assert [gate.fc1.in_features for gate in gates_of(network)] == widths
    assert count_parameters(network) == plain + sum(16 * w + 16 + 16 + 1 for w in widths)


@each_network
def test_a_batch_is_predicted_as_its_single_images(name):
    network = routed(name)
    used = []
    for gate in gates_of(network):
        gate.register_forward_hook(lambda *arguments: used.append(arguments[2]))
    together = network(images(16))
    share = torch.cat(used).mean().item()
    assert 0.2 < share < 0.8
    alone = torch.cat([network(image[None]) for image in images(16)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@each_network
def test_a_single_image_computes_only_the_blocks_whose_gates_are_open(name):
    network = routed(name)
    calls, opened = [], []
    blocks = [block for stage in network.stages for block in stage]
    for block in blocks:
        convolution = block.conv_bn1[0] if name == "enhanced" else block.conv1
        convolution.register_forward_hook(lambda *_: calls.append(1))
        block.gate.register_forward_hook(lambda *arguments: opened.append(arguments[2].item()))
    for image in images(16):
        network(image[None])
    assert len(opened) == 16 * len(blocks)
    assert len(calls) == sum(opened) < len(opened)


@each_network
def test_with_all_gates_open_the_network_is_the_plain_one(name):
    torch.manual_seed(0)
    plain, network = (NETWORKS[name](routing) for routing in ("none", "gates"))
    missing, unexpected = network.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(".gate." in key for key in missing)
    for module in (plain, network):
        module.train()
    for gate in gates_of(network):
        gate.fc2.bias.data.fill_(100.0)
    torch.testing.assert_close(network(images(4)), plain(images(4)))


@each_network
def test_a_closed_gate_leaves_the_shortcut_in_training_too(name):
    network = routed(name).train()
    for gate in gates_of(network):
        gate.fc2.weight.data.zero_()
        gate.fc2.bias.data.fill_(-100.0)
    block = network.stages[0][1]
    x = torch.rand(4, block.gate.fc1.in_features, 8, 8)
    torch.testing.assert_close(block(x), x)
    assert block.gate.rate == 0


@pytest.mark.parametrize(
    "classifier",
    [
        lambda **flags: EnhancedEfficientResNetClassifier(4, dropout=0.0, **flags),
        lambda **flags: WideResNetClassifier(10, 0.5, **flags),
    ],
)
def test_the_loss_pulls_the_gates_to_their_target(classifier):
    torch.manual_seed(0)
    module = classifier(routing="gates", target_rate=0.3, compile=False)
    logits = module(images(8))
    rates = [gate.rate.item() for gate in gates_of(module.network)]
    loss = module.loss(logits, torch.arange(8))
    by_hand = F.cross_entropy(logits, torch.arange(8)).item()
    by_hand += 2 * sum((rate - 0.3) ** 2 for rate in rates) / len(rates)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    loss.backward()
    for gate in gates_of(module.network):
        assert gate.fc2.bias.grad.any()
    copy.deepcopy(module.network)  # averages copy the network after a step


def test_without_gates_the_loss_is_the_cross_entropy():
    module = WideResNetClassifier(10, 0.5, compile=False)
    logits = module(images(8))
    expected = F.cross_entropy(logits, torch.arange(8))
    assert torch.equal(module.loss(logits, torch.arange(8)), expected)


@pytest.mark.parametrize("rate", [0, 1.5, float("nan")])
def test_a_wrong_target_rate_is_named(rate):
    with pytest.raises(ValueError, match="target_rate must be above 0 and at most 1, got"):
        WideResNetClassifier(10, 0.5, target_rate=rate)


@each_network
def test_an_exported_network_equals_the_network_for_any_number_of_images(name):
    network = routed(name)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (images(2),), dynamic_shapes=({0: batch},))
    exported = program.module()
    for n in (1, 3):
        torch.testing.assert_close(exported(images(n)), network(images(n)), rtol=1e-4, atol=1e-5)


def test_a_gate_computes_its_decision_in_32_bits():
    gate = Gate(4).eval()
    with torch.autocast("cpu", torch.bfloat16):
        gates = gate(torch.rand(3, 4, 2, 2, dtype=torch.bfloat16))
    assert gates.dtype == torch.bfloat16
    assert gates.flatten().tolist() == [1, 1, 1]
