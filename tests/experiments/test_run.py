import csv
import math
import subprocess
import sys
import time
import warnings
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image
from torch import nn
from torch.nn import functional as F

from datamodules.normalisation import normalise
from experiments.inference.finished import load_weights, open_run
from experiments.presets import EXPERIMENTS
from experiments.records.metrics import read_metrics
from experiments.records.provenance import describe_device, git_state
from experiments.records.record import read_record
from experiments.reporting.collect import collect
from experiments.training import plots
from experiments.training.experiment import last_train_accuracy, operations_per_image
from lightning_modules.classifier import ImageClassifier
from lightning_modules.layers import routing
from lightning_modules.layers.routing import gates_of
from lightning_modules.networks.sam_resnet import SAMResNet

LEARN = (
    "--arch=resnet",
    "--model.blocks=[1,1,1]",
    "--model.base_width=6",
    "--data.cutout=0",
    "--data.flip=0",
    "--data.crop_padding=0",
    "--lookahead=false",
    "--trainer.limit_train_batches=56",
    "--trainer.max_epochs=5",
)


@pytest.fixture(scope="module")
def run(experiment):
    """Three epochs of sam_resnet with all features on, including W&B."""
    flags = ("--trainer.max_epochs=3", "--wandb=offline", "--seed=3", "--name=whole")
    return experiment(*flags, pictures=True)


@pytest.fixture(scope="module")
def averaged(experiment):
    """Three epochs with SWA instead of EMA; SWA is active in the last two."""
    return experiment("--trainer.max_epochs=3", "--ema=false", "--swa.start=0.5", "--swa.lr=0.02")


def column(run, name):
    """The values of one metric, by epoch."""
    with (run.folder / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def predictions(run):
    with np.load(run.folder / "predictions.npz", allow_pickle=False) as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def test_the_folder_contains_everything_of_the_run(run):
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        ".lock",
        "config.yaml",
        "commands.txt",
        "metrics.csv",
        "hparams.yaml",
        "best.ckpt",
        "best_ema.ckpt",
        "last.ckpt",
        "result.json",
        "predictions.npz",
        "augmented.png",
        "confusion.png",
        "curves.png",
        "wandb",
        "wandb_id.txt",
    }


def test_the_record_comes_back_from_its_file(run):
    assert read_record(run.folder / "result.json") == run.record


def test_the_record_contains_the_command_and_settings(run):
    record = run.record
    assert (record.arch, record.name, record.seed, record.quick) == (
        "sam_resnet",
        "whole",
        3,
        False,
    )
    assert record.source == "synthetic"
    assert record.config == yaml.safe_load((run.folder / "config.yaml").read_text())
    assert record.config["model"]["base_width"] == 4
    (command,) = record.command
    assert command.startswith("python experiments/run.py ")
    assert "--seed=3" in command.split()
    assert (run.folder / "commands.txt").read_text() == command + "\n"
    assert record.commit == git_state()[0]
    assert (record.epochs, record.steps, record.train_images) == (3, 9, 96)
    assert record.precision == "32-true"
    assert record.host == describe_device()
    assert "blas" in record.versions
    assert record.parameters == sum(p.numel() for p in SAMResNet(4, (1, 1, 1)).parameters())
    assert record.training_seconds > 0
    assert datetime.fromisoformat(record.finished).utcoffset().total_seconds() == 0


def test_the_training_accuracy_is_the_last_epochs_as_training_saw_it(run):
    assert run.record.train_accuracy == column(run, "train/acc_soft")[-1]
    assert 0 < run.record.train_accuracy < 1


def test_the_loss_scale_is_not_drawn_as_a_loss(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_write", lambda figure, _: figures.append(figure))
    plots.plot_curves({"train/loss": [(9, 2.3)], "train/loss_scale": [(9, 65536.0)]}, tmp_path)
    assert [line.get_label() for line in figures[0].axes[1].lines] == ["train/loss"]


def test_the_training_accuracy_is_the_last_one_if_mixing_was_switched_off(tmp_path):
    curves = tmp_path / "metrics.csv"
    curves.write_text("step,train/acc,train/acc_soft\n9,,0.25\n19,0.5,\n")
    assert last_train_accuracy(read_metrics(curves)) == 0.5


def test_the_record_contains_the_validation_curve_and_the_clean_training_accuracy(run):
    record = run.record
    assert record.val_curve == pytest.approx(column(run, "val/acc"), abs=1e-6)
    assert len(record.val_curve) == record.epochs
    # The last weights are evaluated on as many training images as validation images.
    network = SAMResNet(4, (1, 1, 1)).eval()
    state = torch.load(run.folder / "last.ckpt", weights_only=True)["state_dict"]
    network.load_state_dict({key.removeprefix("network."): x for key, x in state.items()})
    loader = run.cli.datamodule.clean_train_dataloader(200)
    assert len(loader.images) == 200
    with torch.no_grad():
        right = [network(images).argmax(1) == labels for images, labels in loader]
    assert record.clean_train_accuracy == torch.cat(right).double().mean().item()


@pytest.mark.parametrize("name", ["run", "averaged"])
def test_every_score_follows_from_the_predictions(name, request):
    run = request.getfixturevalue(name)
    arrays = predictions(run)
    kinds = {"raw", "ema" if name == "run" else "swa"}
    assert run.record.scores.keys() == {"val", "test"}
    assert arrays.keys() == {
        f"{split}_{part}" for split in ("val", "test") for part in {"labels", *kinds}
    }
    for split, images in (("val", 200), ("test", 300)):
        labels = arrays[f"{split}_labels"]
        assert labels.shape == (images,)
        assert run.record.scores[split].keys() == kinds
        for kind, score in run.record.scores[split].items():
            logits = arrays[f"{split}_{kind}"]
            assert logits.shape == (images, 10)
            assert logits.dtype == torch.float32
            right = (logits.argmax(1) == labels).double().mean()
            assert score.accuracy == pytest.approx(right.item(), abs=1e-7)
            assert score.nll == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-6)
            assert score.images == images


@pytest.mark.parametrize(
    ("name", "kind", "metric"),
    [
        ("run", "raw", "val/acc"),
        ("run", "ema", "val/acc_ema"),
        ("averaged", "raw", "val/acc"),
        ("averaged", "swa", "val/acc_swa"),
    ],
)
def test_the_scored_weights_are_the_first_best_ones_of_training(name, kind, metric, request):
    run = request.getfixturevalue(name)
    accuracies = column(run, metric)
    score = run.record.scores["val"][kind]
    assert score.accuracy == pytest.approx(max(accuracies), abs=1e-7)
    first = 3 - len(accuracies)  # SWA's average begins later
    assert score.epoch == first + accuracies.index(max(accuracies)) + 1
    suffix = "" if kind == "raw" else f"_{kind}"
    assert score.checkpoint == f"best{suffix}.ckpt"
    assert run.record.scores["test"][kind].checkpoint == score.checkpoint
    assert run.record.scores["test"][kind].epoch == score.epoch


@pytest.mark.parametrize(("name", "kind"), [("run", "raw"), ("run", "ema"), ("averaged", "swa")])
def test_the_predictions_come_from_the_checkpoints_weights(name, kind, request, few_images):
    run = request.getfixturevalue(name)
    checkpoint = torch.load(
        run.folder / run.record.scores["test"][kind].checkpoint, weights_only=True
    )
    state = {key.removeprefix("network."): value for key, value in checkpoint["state_dict"].items()}
    network = SAMResNet(4, (1, 1, 1)).eval()
    network.load_state_dict(state)
    images, labels = few_images("test")
    data = run.cli.datamodule
    with torch.no_grad():
        logits = network(normalise(images, data.mean, data.std))
    arrays = predictions(run)
    torch.testing.assert_close(arrays[f"test_{kind}"], logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(arrays["test_labels"], labels)
    other = "raw" if kind != "raw" else "ema"
    assert (arrays[f"test_{other}"] - logits).abs().max() > 1e-3


def test_the_best_kind_of_weights_on_validation_is_selected(run):
    validation = {kind: score.accuracy for kind, score in run.record.scores["val"].items()}
    assert validation[run.record.selected] == max(validation.values())


def test_the_printed_scores_are_the_recorded_scores(run):
    lines = [line for line in run.output.splitlines() if "│" in line]
    shown = {}
    for line in lines:
        split, kind, accuracy, nll, ece, images, epoch = (x.strip() for x in line.split("│")[1:-1])
        shown[split, kind.removesuffix(" (selected)")] = (accuracy, nll, ece, images, epoch)
    assert shown == {
        (split, kind): (
            f"{100 * score.accuracy:.2f}%",
            f"{score.nll:.4f}",
            f"{score.ece:.4f}",
            str(score.images),
            str(score.epoch),
        )
        for split, kinds in run.record.scores.items()
        for kind, score in kinds.items()
    }
    assert "SYNTHETIC" in run.output
    assert str(run.folder) in run.output.replace("\n", "")


def test_curves_of_raw_and_averaged_weights_and_the_rate_of_every_step_are_logged(run):
    names = {"train/loss", "val/acc", "val/loss", "val/acc_ema", "val/loss_ema"}
    assert {name: len(column(run, name)) for name in names} == dict.fromkeys(names, 3)
    rates = column(run, "lr-SGD")
    assert len(rates) == 9
    assert rates[0] == 0.001  # the start of SAMResNet's warm-up
    (optimizer,) = run.cli.trainer.optimizers
    assert isinstance(optimizer, torch.optim.SGD)


def test_swa_overrides_the_rate_from_its_start(averaged):
    rates = column(averaged, "lr-SGD")
    assert rates[3:] == [0.02] * 6
    assert 0.02 not in rates[:3]


def test_pictures_are_pictures(run):
    with Image.open(run.folder / "augmented.png") as grid:
        # A batch of 32 images, eight per row, with gaps of two pixels.
        assert grid.size == (8 * 34 + 2, 4 * 34 + 2)
        assert len(grid.getcolors(maxcolors=2**24)) > 1_000
    for name in ("confusion.png", "curves.png"):
        with Image.open(run.folder / name) as picture:
            picture.verify()
            assert min(picture.size) > 300


def test_wandb_is_kept_offline_in_the_folder(run):
    identity = (run.folder / "wandb_id.txt").read_text()
    (offline,) = (run.folder / "wandb").glob("offline-run-*")
    assert offline.name.endswith(identity)
    (log,) = offline.glob("*.wandb")
    content = log.read_bytes()
    for logged in (b"val/acc_ema", b"lr-SGD", b"confusion_matrix_table", b"augmented_images"):
        assert logged in content, logged


@pytest.mark.parametrize("file", ["best.ckpt", "best_ema.ckpt", "last.ckpt"])
def test_checkpoints_contain_no_code_and_the_last_one_is_complete(run, file):
    checkpoint = torch.load(run.folder / file, weights_only=True)
    assert checkpoint["architecture"] == "SAMResNetClassifier"
    assert checkpoint["hyper_parameters"]["base_width"] == 4
    module = EXPERIMENTS["sam_resnet"].load_from_checkpoint(run.folder / file, weights_only=True)
    assert module.state_dict().keys() == checkpoint["state_dict"].keys()
    if file == "last.ckpt":
        assert {"EMA", "Lookahead", "RandomState"} <= checkpoint["callbacks"].keys()
        assert "momentum_buffer" in checkpoint["optimizer_states"][0]["state"][0]
    else:
        assert not checkpoint.keys() & {"callbacks", "optimizer_states", "loops"}


def test_without_validation_images_the_last_weights_are_tested(experiment):
    run = experiment("--data.val_fraction=0")
    assert run.record.selected is None
    assert (run.record.clean_train_accuracy, run.record.val_curve) == (None, [])
    assert run.record.scores.keys() == {"test"}
    for score in run.record.scores["test"].values():
        assert (score.checkpoint, score.epoch) == ("last.ckpt", 2)
    assert not list(run.folder.glob("best*"))
    assert predictions(run).keys() == {"test_labels", "test_raw", "test_ema"}
    assert run.cli.trainer.num_training_batches == 3


def test_an_average_without_updates_is_left_out(experiment):
    flags = ("--trainer.max_steps=4", "--ema=false", "--swa.start=0.9", "--trainer.max_epochs=9")
    with pytest.warns(UserWarning, match="best_swa.ckpt was not written"):
        run = experiment(*flags)
    assert run.record.steps == 4
    assert run.record.scores["test"].keys() == {"raw"}
    assert load_weights(run.folder, "swa") is None


def test_a_run_that_max_steps_ends_within_an_epoch_is_validated_and_tested(experiment):
    class Slow(Callback):
        def on_train_batch_end(self, *_):
            time.sleep(1)

    # Both limits end training after two of three batches.
    flags = ("--arch=speed_resnet", "--model.base_width=2", "--model.lr=0.1")
    limits = ("--trainer.max_epochs=9", "--trainer.max_steps=2", "--trainer.max_time=00:00:00:01")
    run = experiment(*flags, *limits, callbacks=[Slow()])
    assert (run.record.steps, run.record.epochs) == (2, 1)
    [accuracy] = column(run, "val/acc")
    score = run.record.scores["val"]["raw"]
    assert (score.accuracy, score.checkpoint) == (pytest.approx(accuracy, abs=1e-7), "best.ckpt")


def test_augmix_its_loss_and_sam_train_together_and_the_views_are_shown(experiment):
    augmix = ("--data.policy=augmix", "--model.jsd_weight=12", "--data.mixup_alpha=0")
    run = experiment(*augmix, "--model.sharpness=sam", "--trainer.max_epochs=1", pictures=True)
    assert 0 < column(run, "train/loss")[-1] < 20
    assert 0 <= run.record.train_accuracy <= 1
    assert (run.folder / "augmented.png").stat().st_size > 10_000


def test_a_record_has_the_share_of_blocks_that_images_use(experiment, run, monkeypatch):
    monkeypatch.setattr(routing, "OPEN", 0.5)  # after a few steps images differ in their gates
    gated = experiment(
        *("--arch=wide_resnet", "--model.depth=10", "--model.widen_factor=0.5", "--swa=false"),
        *(
            "--model.routing=gates",
            "--model.target_rate=0.2",
            "--model.sharpness=sam",
            "--ema=true",
        ),
    )
    used: list[torch.Tensor] = []
    network = open_run(gated.folder).network(gated.record.selected)
    for gate in gates_of(network):
        gate.register_forward_hook(lambda *arguments: used.append(arguments[2]))
    for images, _ in gated.cli.datamodule.val_dataloader():
        network(images)
    assert gated.record.blocks_used == pytest.approx(torch.cat(used).mean().item())
    assert f"An image uses {gated.record.blocks_used:.1%} of the gated blocks" in gated.output
    assert run.record.blocks_used is None


def test_the_test_images_are_not_read_before_training_has_ended(experiment, few_images):
    events = []

    class End(Callback):
        def on_train_end(self, trainer, pl_module):
            events.append("end of training")

    def images(split, **_):
        events.append(split)
        return few_images(split)

    experiment(images=images, callbacks=[End()])
    assert events == ["train", "end of training", "test"]


def test_a_run_without_a_test_is_not_in_the_report(experiment, few_images):
    read = []

    def images(split, **_):
        read.append(split)
        return few_images(split)

    run = experiment("--test=false", "--ema=true", "--wandb=offline", images=images, pictures=True)
    assert set(read) == {"train"}
    assert run.record.scores.keys() == {"val"}
    assert run.record.weights == ["raw", "ema"]
    assert set(predictions(run)) == {"val_labels", "val_raw", "val_ema"}
    assert not (run.folder / "confusion.png").exists()
    assert collect([run.folder]).entries == []
    assert "test " not in run.output


def test_the_validation_split_does_not_follow_the_seed(run, experiment):
    other = experiment("--seed=4", "--trainer.max_epochs=1")
    assert torch.equal(predictions(run)["val_labels"], predictions(other)["val_labels"])
    assert not torch.equal(predictions(run)["test_raw"], predictions(other)["test_raw"])


def test_operations_are_counted_as_two_a_multiply_add():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 32 * 32, 10)
    )
    convolution, linear = 3 * 3 * 3 * 4 * 32 * 32, 4 * 32 * 32 * 10
    assert operations_per_image(ImageClassifier(network)) == 2 * (convolution + linear)


def test_the_synthetic_set_is_learned(experiment):
    run = experiment(*LEARN)
    assert run.record.scores["test"]["raw"].accuracy >= 0.95
    with np.load(run.folder / "predictions.npz") as arrays:
        labels, logits = arrays["test_labels"], arrays["test_raw"]
    # Each class has 30 images.
    right = np.bincount(labels[logits.argmax(1) == labels], minlength=10)
    assert right.min() >= 24


def test_shuffled_labels_are_not(experiment, few_images):
    def shuffled(split, **_):
        images, labels = few_images(split)
        if split == "train":
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
            labels = labels[order]
        return images, labels

    run = experiment(*LEARN, images=shuffled)
    # Chance is 10%, with a tolerance of four standard deviations for 300 test images.
    assert run.record.scores["test"]["raw"].accuracy < 0.1 + 4 * math.sqrt(0.1 * 0.9 / 300)


def test_a_run_gives_no_warning(experiment):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        experiment("--trainer.max_epochs=1")
    assert [f"{x.category.__name__}: {x.message}" for x in found] == []


@pytest.mark.trust
@pytest.mark.parametrize("arch", ["sam_resnet", "speed_resnet"])
def test_quick_learns_the_synthetic_set(arch, tmp_path):
    flags = ["--arch", arch, "--quick", "--data.source", "synthetic", "--wandb", "disabled"]
    command = [sys.executable, "experiments/run.py", *flags, "--output", str(tmp_path)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True
    )
    assert "site-packages" not in done.stderr  # the path of a warning
    (result,) = tmp_path.glob("*/result.json")
    record = read_record(result)
    assert record.quick
    assert record.scores["test"][record.selected].images == 10_000
    assert record.scores["test"][record.selected].accuracy >= 0.95
