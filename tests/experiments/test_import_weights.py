"""The weights of SAMResNet's authors become a run with equal logits."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import experiments.inference.evaluation
from datamodules.datasets import CIFAR10, PublicDataSet
from datamodules.normalisation import normalise
from datamodules.synthetic import synthetic_cifar10
from experiments import evaluate
from experiments.exports.importing import THEIR_MEAN, THEIR_STD, import_weights, rename, size_of
from experiments.inference.finished import open_run
from lightning_modules.networks.sam_resnet import SAMResNet


class Reference(nn.Module):
    """SAMResNet with the key names of its authors."""

    def __init__(self, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(blocks):
            layer = nn.Sequential()
            for i in range(count):
                layer.append(self.block(channels, width * 2**stage, 2 if stage and not i else 1))
                channels = width * 2**stage
            setattr(self, f"layer{stage + 1}", layer)
        self.linear = nn.Linear(channels, 10)

    @staticmethod
    def block(channels: int, out: int, stride: int) -> nn.ModuleDict:
        squeeze, excite = nn.Conv2d(out, out // 16, 1), nn.Conv2d(out // 16, out, 1)
        se = nn.Sequential(nn.AdaptiveAvgPool2d(1), squeeze, nn.SiLU(), excite, nn.Sigmoid())
        shortcut = nn.Sequential()
        if channels != out or stride > 1:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            shortcut.extend([conv, nn.BatchNorm2d(out)])
        return nn.ModuleDict(
            {
                "conv1": nn.Conv2d(channels, out, 3, stride, 1, bias=False),
                "bn1": nn.BatchNorm2d(out),
                "conv2": nn.Conv2d(out, out, 3, 1, 1, bias=False),
                "bn2": nn.BatchNorm2d(out),
                "se": nn.ModuleDict({"se": se}),
                "shortcut": shortcut,
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3):
            for block in layer:
                out = F.silu(block["bn1"](block["conv1"](x)))
                out = block["bn2"](block["conv2"](out * block["se"]["se"](out)))
                x = F.silu(out + block["shortcut"](x))
        return self.linear(x.mean((2, 3)))


def reference(width: int = 16, blocks: tuple[int, ...] = (2, 1, 1), seed: int = 0) -> Reference:
    """A reference network with random weights and random BatchNorm statistics."""
    torch.manual_seed(seed)
    network = Reference(width, blocks)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.2)
    return network.eval()


@pytest.fixture
def test_images(monkeypatch):
    """The data module reads 30 images of each class instead of CIFAR-10's files."""
    few = {split: synthetic_cifar10(split, per_class=30) for split in ("train", "test")}
    monkeypatch.setattr(PublicDataSet, "find", lambda *_, **__: None)
    monkeypatch.setattr(PublicDataSet, "load", lambda _, split: few[split])
    return few["test"]


@pytest.fixture
def files(tmp_path):
    paths = {"raw": tmp_path / "best_model (1).pth", "ema": tmp_path / "best_ema_model.pth"}
    for seed, path in enumerate(paths.values()):
        torch.save(reference(seed=seed).state_dict(), path)
    return paths


@pytest.mark.parametrize("size", [(64, (4, 4, 3)), (16, (2, 1, 1))])
def test_with_their_weights_our_network_is_theirs(size):
    theirs = reference(*size)
    state = rename(theirs.state_dict())
    assert size_of(state) == {"base_width": size[0], "blocks": list(size[1])}
    ours = SAMResNet(*size).eval()
    ours.load_state_dict(state)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_an_imported_run_equals_its_networks_and_can_be_evaluated(
    files, test_images, tmp_path, capsys, monkeypatch
):
    images, labels = test_images
    folder = tmp_path / "authors"
    record = import_weights(files, folder)
    run = open_run(folder)
    for seed, name in enumerate(files):
        with torch.no_grad():
            ours = run.network(name)(
                normalise(images, torch.tensor(CIFAR10.mean), torch.tensor(CIFAR10.std))
            )
            pixels = normalise(images, torch.tensor(THEIR_MEAN), torch.tensor(THEIR_STD))
            theirs = reference(seed=seed)(pixels)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
        accuracy = (theirs.argmax(1) == labels).double().mean().item()
        assert record.scores["test"][name].accuracy == pytest.approx(accuracy)
    monkeypatch.setattr("sys.argv", ["evaluate.py", str(folder)])
    monkeypatch.setattr(experiments.inference.evaluation, "TIMED", 50)
    evaluate.main()
    evaluation = run.evaluation()
    assert {"plain", "ema", "tta+ensemble"} <= evaluation.strategies.keys()
    for strategy, name in (("plain", "raw"), ("ema", "ema")):
        scored = evaluation.strategies[strategy].scores["test"].accuracy
        assert scored == pytest.approx(record.scores["test"][name].accuracy)


def test_raw_weights_alone_make_a_run_without_an_average(files, test_images, tmp_path):
    record = import_weights({"raw": files["raw"]}, tmp_path / "run")
    assert record.weights == ["raw"]
    assert not record.config["ema"]


def other_sizes(path):
    torch.save(reference(32).state_dict(), path)


def incomplete(path):
    state = reference().state_dict()
    del state["layer2.0.se.se.1.bias"]
    torch.save(state, path)


MISTAKES = {
    "missing": lambda path: None,
    "no archive": lambda path: path.write_bytes(b"not a file of torch"),
    "no weights": lambda path: torch.save({"epoch": 3}, path),
    "code": lambda path: torch.save(reference(), path),
    "other": lambda path: torch.save(SAMResNet(16, (1, 1, 1)).state_dict(), path),
    "incomplete": incomplete,
    "other size": other_sizes,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_file_is_one_line_and_leaves_no_folder(mistake, files, tmp_path, refusal):
    files["ema"].unlink()
    MISTAKES[mistake](files["ema"])
    line = refusal(act=lambda: import_weights(files, tmp_path / "run"))
    assert str(files["ema"]) in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changed",
    [
        {},  # no block
        {"layer1": torch.zeros(1)},
        {"conv1.weight": torch.zeros(0, 3, 3, 3)},
        {"conv1.weight": torch.tensor(1.0)},
        {3: torch.zeros(1)},
    ],
    ids=str,
)
def test_another_network_with_their_first_and_last_layer_is_one_line(changed, tmp_path, refusal):
    names = ("conv1.weight", "bn1.running_mean", "linear.weight")
    path = tmp_path / "other.pth"
    torch.save(dict.fromkeys(names, torch.zeros(8, 3, 3, 3)) | changed, path)
    assert str(path) in refusal(act=lambda: import_weights({"raw": path}, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_is_refused(files, tmp_path, refusal):
    assert "another --output" in refusal(act=lambda: import_weights(files, tmp_path))
