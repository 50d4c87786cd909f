from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.layers.whitening import PatchWhitening
from lightning_modules.networks import count_parameters
from lightning_modules.networks.speed_resnet import SpeedResNet
from lightning_modules.speed_resnet import SpeedResNetClassifier

SMALL = {
    "speed": partial(SpeedResNet, base_width=8),
    "residual": partial(SpeedResNet, 8, widths=(1, 2, 3), convs=3, residual=True),
    "plain": partial(SpeedResNet, 8, whitening=False, dirac=False),
}
each_network = pytest.mark.parametrize("make", SMALL.values(), ids=SMALL.keys())


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def by_hand(widths: tuple[int, int, int], convs: int) -> int:
    """Count the groups' filters and biases, the head, and the whitening layer's bias."""
    total, channels = 24 + 10 * widths[-1], 24
    for width in widths:
        total += 9 * channels * width + (convs - 1) * 9 * width**2 + convs * width
        channels = width
    return total


@pytest.mark.parametrize(
    ("arguments", "widths", "parameters"),
    [
        ({}, (64, 256, 256), 1_971_352),
        ({"widths": (1, 4, 6), "convs": 3, "residual": True}, (64, 256, 384), 4_959_576),
        ({"base_width": 8}, (8, 32, 32), 32_744),
    ],
)
def test_sizes_equal_a_count_by_hand(
    arguments: dict[str, Any], widths: tuple[int, int, int], parameters: int
) -> None:
    with torch.device("meta"):
        count = count_parameters(SpeedResNet(**arguments))
    assert count == parameters == by_hand(widths, arguments.get("convs", 2))


def test_without_whitening_its_288_weights_are_trained_too() -> None:
    with torch.device("meta"):
        assert count_parameters(SpeedResNet(whitening=False)) == 1_971_352 + 288


@pytest.mark.parametrize("residual", [False, True])
def test_the_network_equals_the_papers_description(residual: bool) -> None:
    convs = 3 if residual else 2
    network = SpeedResNet(4, convs=convs, residual=residual)
    x = F.gelu(F.conv2d(images(), network.stem.weight, network.stem.bias))
    assert x.shape[1:] == (24, 31, 31)
    for group, size in zip(network.groups, (15, 7, 3), strict=True):
        x = F.max_pool2d(F.conv2d(x, group.convs[0].weight, padding=1), 2)
        assert x.shape[2:] == (size, size)
        x = first = F.gelu(F.batch_norm(x, None, None, training=True))
        for conv in group.convs[1:]:
            x = F.batch_norm(F.conv2d(x, conv.weight, padding=1), None, None, training=True)
            if residual and conv is group.convs[-1]:
                x = x + first
            x = F.gelu(x)
    expected = F.max_pool2d(x, 3).flatten(1) @ network.head.weight.T / 9
    torch.testing.assert_close(network(images()), expected)


def test_dirac_filters_return_their_input() -> None:
    for group in SpeedResNet(8).groups:
        for conv in group.convs:
            x = torch.randn(2, conv.in_channels, 6, 6)
            kept = min(conv.in_channels, conv.out_channels)
            torch.testing.assert_close(conv(x)[:, :kept], x[:, :kept])
    plain = SpeedResNet(8, dirac=False).groups[1].convs[1]
    assert not torch.equal(plain(x)[:, :32], x)


@each_network
def test_scales_of_batch_norm_are_frozen_at_one_and_shifts_are_trained(make: Any) -> None:
    norms = [m for m in make(bn_momentum=0.25).modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert not norm.weight.requires_grad
        assert (norm.weight == 1).all()
        assert norm.bias.requires_grad
        assert norm.momentum == 0.25


@each_network
def test_gradient_reaches_every_trained_parameter(make: Any) -> None:
    torch.manual_seed(0)
    network = make()
    F.cross_entropy(network(images(8)), torch.arange(8)).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None and parameter.grad.any()) == parameter.requires_grad, (
            name
        )


@each_network
def test_in_bf16_and_channels_last_it_computes_the_same(make: Any) -> None:
    torch.manual_seed(0)
    network = make()
    exact = network(images(16))
    exact.square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    network.zero_grad()
    network.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images(16).contiguous(memory_format=torch.channels_last))
    logits.float().square().sum().backward()
    torch.testing.assert_close(logits.float(), exact, rtol=0.1, atol=0.1)
    head = network.head.weight.grad.flatten()
    assert F.cosine_similarity(head, gradients["head.weight"].flatten(), dim=0) > 0.98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_width": 0}, "base_width must be 1 or more, got 0"),
        ({"convs": 0}, "convs must be 1 or more, got 0"),
        ({"widths": (1, 4)}, r"widths must be 3 positive multiples, got \[1, 4\]"),
        ({"convs": 1, "residual": True}, "convs must be 2 or more if residual is on, got 1"),
        ({"bn_momentum": 0.0}, r"bn_momentum must be in \(0, 1\], got 0.0"),
        ({"whitening_bias": 2.0}, r"whitening_bias must be in \[0, 1\], a share .* got 2.0"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        SpeedResNetClassifier(**arguments)


class Data(LightningDataModule):
    """Four batches of random images, and training images for the whitening layer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(32, 3, 32, 32, generator=generator).cumsum(2) / 3
        self.asked: list[int] = []

    def training_images(self, count: int) -> Tensor:
        self.asked.append(count)
        return self.images[:count]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.images, torch.arange(32) % 10), batch_size=8)


@pytest.fixture
def fit(tmp_path: Path) -> Iterator[Any]:
    def fit(module: SpeedResNetClassifier, data: Any, epochs: int, **options: Any) -> Trainer:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)],
        )
        trainer.fit(module, data, weights_only=True, **options)
        return trainer

    return fit


def tiny(**arguments: Any) -> SpeedResNetClassifier:
    return SpeedResNetClassifier(base_width=2, lr=0.05, bias_lr_factor=8.0, **arguments)


def test_training_begins_with_filters_from_the_data_and_leaves_them(fit: Any) -> None:
    module, data = tiny(), Data()
    fit(module, data, epochs=1)
    assert data.asked == [5_000]
    expected = PatchWhitening(3, 2)
    expected.fit_patches(data.images)
    assert torch.equal(module.network.stem.weight, expected.weight)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_resumed_run_is_exact_and_whitens_nothing_anew(
    optimizer: Any, fit: Any, tmp_path: Path
) -> None:
    whole = tiny(optimizer=optimizer)
    fit(whole, Data(), epochs=3)
    checkpoint = tmp_path / "epoch=1.ckpt"
    again, data = tiny(optimizer=optimizer), Data()
    fit(again, data, epochs=3, ckpt_path=checkpoint)
    assert data.asked == []
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize(("share", "trained"), [(0.0, 0), (0.5, 4), (0.625, 5), (1.0, 8)])
def test_the_whitening_bias_is_trained_for_a_share_of_the_steps(
    share: float, trained: int, fit: Any
) -> None:
    biases = []

    class Watched(SpeedResNetClassifier):
        def on_train_batch_end(self, *_: Any) -> None:
            biases.append(self.network.stem.bias.detach().clone())

    module = Watched(base_width=2, lr=0.05, whitening_bias=share)
    fit(module, Data(), epochs=2)
    changes = [not torch.equal(a, b) for a, b in pairwise([torch.zeros(24), *biases])]
    assert changes == [True] * trained + [False] * (8 - trained)
    # The frozen bias still counts as trainable after training.
    assert count_parameters(module.network) == count_parameters(tiny().network)


def test_a_compiled_network_is_not_compiled_again_when_the_bias_rests(
    fit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_with = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda network, **_: compile_with(network, backend="eager")
    )
    torch._dynamo.reset()
    graphs: list[int] = []

    class Counts(SpeedResNetClassifier):
        def on_train_epoch_end(self) -> None:
            super().on_train_epoch_end()
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    states = []
    for compiled in (True, False):
        torch.manual_seed(0)
        module = Counts(
            base_width=2, lr=0.05, bias_lr_factor=8.0, whitening_bias=0.5, compile=compiled
        )
        fit(module, Data(), epochs=3)
        states.append(module.state_dict())
    assert graphs == [graphs[0]] * 6
    assert graphs[0] > 0
    torch.testing.assert_close(*states)


def test_without_whitening_no_images_are_requested(fit: Any) -> None:
    module, data = tiny(whitening=False), Data()
    before = module.network.stem.weight.detach().clone()
    fit(module, data, epochs=1)
    assert data.asked == []
    assert not torch.equal(module.network.stem.weight, before)


def test_muon_needs_the_whitening_layer() -> None:
    with pytest.raises(ValueError, match=r"^whitening must be on if optimizer is muon"):
        tiny(whitening=False, optimizer="muon")


def test_whitening_needs_a_data_module_with_images(fit: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"^whitening must be off if"):
        fit(tiny(), Data().train_dataloader(), epochs=1)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_shifts_of_batch_norm_learn_faster_and_decay_as_slowly(optimizer: Any, fit: Any) -> None:
    module = SpeedResNetClassifier(
        base_width=2, lr=0.05, bias_lr_factor=64.0, weight_decay=1e-3, optimizer=optimizer
    )
    trainer = fit(module, Data(), epochs=1)
    shifts = {id(m.bias) for m in module.network.modules() if isinstance(m, nn.BatchNorm2d)}
    found = []
    for group in trainer.optimizers[0].param_groups:
        kind = {id(p) in shifts for p in group["params"]}
        assert len(kind) == 1
        if kind == {True}:
            found += group["params"]
            assert group["initial_lr"] == pytest.approx(64 * 0.05)
            assert group["weight_decay"] * 64 == pytest.approx(1e-3)
    assert len(found) == len(shifts) == 6
