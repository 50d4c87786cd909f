"""A data set of seven classes, from a folder of pictures to predictions and an export."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from experiments import evaluate, export, predict
from experiments.inference.finished import open_network, open_run
from experiments.presets import EXPERIMENTS
from experiments.records.record import read_evaluation, read_record, write_record
from experiments.training.configuration import on_meta, resolve_config
from lightning_modules import ARCHITECTURES
from lightning_modules.networks import count_parameters
from lightning_modules.pretrained import PretrainedClassifier

SEVEN = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of seven classes with a colour each: 20 per class for training, 5 for testing."""
    root = tmp_path_factory.mktemp("data") / "pictures"
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for label, name in enumerate(SEVEN):
            folder = root / split / name
            folder.mkdir(parents=True)
            colour = np.array([label & 1, label >> 1 & 1, label >> 2 & 1]) * 180
            for i in range(count):
                pixels = colour + generator.integers(0, 70, (36, 48, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    (root / "train" / "ant" / "broken.jpg").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def flags(pictures):
    return ("--data.dataset=folder", "--data.source=folder", f"--data.root={pictures}")


@pytest.fixture(scope="module")
def run(experiment, flags):
    """A finished run on the folder; its network distinguishes the colours."""
    made = experiment(
        *flags, "--data.batch_size=21", "--trainer.limit_train_batches=1.0", "--data.cutout=0",
        "--trainer.max_epochs=30", "--data.mixup_alpha=0", "--model.lr=0.05",
        "--model.base_width=8",
    )  # fmt: skip
    return open_run(made.folder)


def call(command, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"experiments/{command.__name__}.py", *map(str, arguments)])
        command.main()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_trains_on_seven_classes(experiment, flags, arch):
    small = [f"--model.{name}={value}" for name, value in ARCHITECTURES[arch].quick.items()]
    short = ("--trainer.max_steps=2", "--trainer.max_epochs=1", "--data.batch_size=32")
    made = experiment(f"--arch={arch}", *flags, *small, *short)
    assert made.record.steps == 2
    assert made.record.config["model"]["classes"] == 7
    network = made.cli.model.network
    heads = [x for x in network.modules() if isinstance(x, nn.Linear) and x.out_features == 7]
    assert len(heads) == 1
    assert made.record.parameters == count_parameters(network)
    with np.load(made.folder / "predictions.npz") as arrays:
        assert arrays["test_raw"].shape == (35, 7)


def test_larger_images_are_trained_predicted_and_counted(experiment, flags):
    made = experiment(*flags, "--data.image_size=64", "--trainer.max_epochs=1")
    small = experiment(*flags, "--trainer.max_epochs=1")
    assert made.record.images.image_size == 64
    assert made.record.parameters == small.record.parameters
    assert 3.9 < made.record.operations_per_image / small.record.operations_per_image < 4.1


def test_the_record_describes_the_folder(run):
    images = run.record.images
    assert run.record.source == "folder"
    assert images.classes == list(SEVEN)
    assert images.skipped == 1
    assert len(images.digest) == 64
    assert read_record(run.folder / "result.json") == run.record
    scores = run.record.scores
    assert scores["val"]["raw"].images == 14
    assert scores["test"]["raw"].images == 35
    assert scores["test"][run.record.selected].accuracy > 0.8


def test_older_records_are_of_cifar10(record_of, tmp_path):
    record = record_of(["--arch=resnet"])
    assert record.images is None
    for name in ("dataset", "image_size"):
        del record.config["data"][name]
    write_record(record, tmp_path / "result.json")
    images = open_run(tmp_path).images
    assert images.classes[3] == "cat"
    assert images.image_size == 32


def test_an_evaluation_scores_the_classes_of_the_folder(run):
    call(evaluate, run.folder, "--only=flip")
    call(evaluate, run.folder)
    found = read_evaluation(run.folder / "evaluation.json")
    assert found.source == "folder"
    assert found.strategies["plain"].scores["test"].images == 35


def test_pictures_get_the_names_of_the_folders_classes(run, pictures, tmp_path):
    output = tmp_path / "answers.csv"
    call(predict, run.folder, pictures / "test", f"--output={output}", "--probabilities", "--top=7")
    rows = list(csv.reader(output.open()))
    assert rows[0] == ["ID", "class", *SEVEN]
    right = [Path(row[0]).parent.name == row[1] for row in rows[1:]]
    assert len(right) == 35
    assert sum(right) > 28


def test_an_export_has_the_classes_and_the_normalisation_of_the_folder(run, pictures, tmp_path):
    folder = tmp_path / "export"
    call(export, run.folder, f"--output={folder}", "--verify")
    config = json.loads((folder / "config.json").read_text())
    assert config["classes"] == list(SEVEN)
    assert config["mean"] == run.record.images.mean
    card = (folder / "README.md").read_text()
    assert "ant, bee, cat, dog, eel, fox, gnu" in card
    assert "logits (N, 7)" in card
    assert "CIFAR" not in card
    assert open_network(folder).images.classes == list(SEVEN)
    model = PretrainedClassifier.from_pretrained(folder, strict=True)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    output = tmp_path / "answers.csv"
    call(predict, folder, pictures / "test" / "bee", f"--output={output}", "--probabilities")
    assert [row[1] for row in csv.reader(output.open())][1:].count("bee") >= 4


def test_a_run_without_a_test_folder_is_scored_on_validation(experiment, flags, pictures, tmp_path):
    root = tmp_path / "pictures"
    shutil.copytree(pictures / "train", root / "train")
    made = experiment(*flags, f"--data.root={root}")
    assert list(made.record.scores) == ["val"]
    call(evaluate, made.folder)
    scores = read_evaluation(made.folder / "evaluation.json").strategies["plain"].scores
    assert list(scores) == ["val"]
    (root / "train" / "ant" / "0.png").unlink()
    with pytest.raises(SystemExit) as end:
        call(evaluate, made.folder)
    assert end.value.code == 2


def test_the_documented_numbers_of_parameters_equal_the_presets():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert [row[0] for row in rows] == list(EXPERIMENTS)
    for arch, *stated in rows:
        model = resolve_config([f"--arch={arch}"])["model"]
        networks = [on_meta(arch, model | {"classes": classes}).network for classes in (10, 100)]
        assert [f"{count_parameters(network):,}" for network in networks] == stated


def test_the_budget_counts_the_head_of_the_data_set(build):
    widths = {}
    for name in ("cifar10", "cifar100"):
        cli = build(
            f"--data.dataset={name}", f"--data.root={Path('data')}", "--fit_budget=12000",
            "--arch=sam_resnet", "--model.blocks=[1,1,1]",
        )  # fmt: skip
        widths[name] = cli.model.hparams["base_width"]
        assert count_parameters(cli.model.network) <= 12_000
        assert cli.model.network.head.out_features == len(cli.datamodule.classes)
    assert widths["cifar100"] < widths["cifar10"]


def test_digits_are_not_mirrored_unless_the_flag_asks_for_it(build):
    def flips(*flags):
        data = build("--arch=speed_resnet", "--data.dataset=svhn", *flags).config.data
        return data.flip, data.flip_mode

    assert flips() == (0.0, "random")
    assert flips("--data.flip=0.5") == (0.5, "alternating")


@pytest.mark.parametrize(("dataset", "flip"), [("svhn", 0.5), ("cifar10", 0.0)])
def test_the_settings_of_a_run_keep_its_flips_for_digits(dataset, flip, tmp_path):
    before = resolve_config(["--arch=resnet", f"--data.dataset={dataset}", "--data.flip=0.5"])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(before))
    again = resolve_config(["--arch=resnet", f"--config={file}", "--data.dataset=svhn"])
    assert again["data"]["flip"] == flip


def test_synthetic_images_have_the_classes_of_the_data_set(build):
    cli = build("--data.dataset=cifar100")
    cli.datamodule.setup("fit")
    labels = cli.datamodule.train_dataloader().labels
    assert cli.datamodule.source == "synthetic"
    assert labels.bincount().tolist() == [450] * 100


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--data.image_size=64"], "image_size must be 32 for the data set cifar10, got 64"),
        (["--data.dataset=folder"], "--data.dataset folder needs --data.root DIR"),
        (["--data.dataset=svhn", "--data.source=cifar10"], "--data.source must be svhn, synthetic"),
        (["--model.classes=11"], "--model.classes must be 10 for --data.dataset cifar10, got 11"),
        (["--data.dataset=folder", "--data.root=none"], "--data.root none has no folder train"),
    ],
)
def test_a_wrong_data_set_is_rejected(refusal, wrong, message):
    assert message in refusal(*wrong)


def test_an_empty_class_and_a_changed_folder_are_rejected(
    refusal, experiment, flags, pictures, tmp_path
):
    root = tmp_path / "pictures"
    shutil.copytree(pictures, root)
    flags = (*flags, f"--data.root={root}")
    made = experiment(*flags, "--trainer.max_epochs=1", "--name=changed", f"--output={tmp_path}")
    (made.folder / "result.json").unlink()
    resumed = ("--name=changed", f"--output={tmp_path}", "--ckpt_path=last")
    again = experiment(*flags, "--trainer.max_epochs=2", "--allow-changes", *resumed)
    assert again.record.epochs == 2
    (made.folder / "result.json").unlink()
    (root / "train" / "hen").mkdir()
    assert "train/hen contains no pictures" in refusal(*flags)
    shutil.copy(root / "train" / "gnu" / "0.png", root / "train" / "hen")
    assert "--model.classes: 7 -> 8" in refusal(*flags, *resumed)


def test_a_shift_needs_cifar10(run, capsys):
    with pytest.raises(SystemExit) as end:
        call(evaluate, run.folder, "--shift")
    assert end.value.code == 2
    assert "was trained on a folder of pictures" in capsys.readouterr().err
