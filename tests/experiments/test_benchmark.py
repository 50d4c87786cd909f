import argparse
import errno
import sys
from dataclasses import asdict
from importlib import import_module
from threading import Barrier

import pytest
import torch
from torchvision.transforms import v2

import datamodules.cifar10
import datamodules.tensor_loader
from datamodules.augmentation import cutout
from datamodules.facts import CIFAR10_MEAN, CIFAR10_STD
from datamodules.normalisation import normalise
from experiments import benchmark
from experiments.benchmarks import (
    data,
    predict,
    rows,
    stock,
    time_to_accuracy,
    timing,
)
from experiments.benchmarks.flags import KINDS
from experiments.benchmarks.step import Step
from experiments.benchmarks.timing import alternate, ratio
from experiments.console import UserError
from experiments.inference import evaluation
from experiments.presets import EXPERIMENTS
from experiments.records import record
from experiments.records.record import read_benchmark
from experiments.reporting.tables import print_table
from experiments.training.configuration import resolve_config

CPU = torch.device("cpu")
SMALL = ["--data.source=synthetic", "--model.base_width=4"]
TOY = {
    "data": [
        *("--presets=sam_resnet", "--share=sam_resnet", "--images=256", "--stock-images=128"),
        *("--workers=1", "--repeats=1", "--source=synthetic"),
    ],
    "step": [
        *("--arch=sam_resnet", "--batch-size=2", "--compile=off", "--precision=32-true"),
        *("--repeats=1", "--profile"),
    ],
    "overhead": [
        *("--arch=sam_resnet", "--batch-size=8", "--steps=2", "--repeats=1"),
        *("--", *SMALL, "--wandb=disabled", "--trainer.enable_progress_bar=false"),
    ],
    "time-to-accuracy": [
        *("--arch=sam_resnet", "--seeds=1", "--strategy=plain", "--"),
        *(*SMALL, "--wandb=disabled", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1"),
        *("--trainer.enable_progress_bar=false", "--data.batch_size=8", "--test=false"),
    ],
    "predict": ["--images=2", "--repeats=2"],
    "rows": [
        *("--arch=sam_resnet", "--warm-up=1", "--window=2", "--repeats=1"),
        *("--", *SMALL, "--data.batch_size=8"),
    ],
    "gpu": [
        *("--rows=sam_resnet,overhead", "--max-images=8", "--warm-up=2", "--window=2"),
        *("--repeats=2", "--", *SMALL, "--wandb=disabled", "--trainer.limit_train_batches=4"),
        "--trainer.enable_progress_bar=false",
    ],
}


@pytest.fixture
def measured(monkeypatch, few_images, command, tmp_path, capsys):
    """Run the benchmark with these arguments; return its record and its output."""

    def small_step(arch, hparams, *rest):
        return Step(arch, {**hparams, "base_width": 4}, *rest)

    def run_in_this_process(arguments):
        command(list(arguments))
        return 0

    def train_in_this_process(arguments, count, warm_up, window):
        return [rows._train(arguments, warm_up, window, Barrier(1), None) for _ in range(count)]

    def measured(kind, *flags):
        output = tmp_path / "new" / "benchmark.json"
        own = ["--device=cpu", f"--output={output}"]
        if kind == "time-to-accuracy":
            own.append(f"--runs={tmp_path}")
        monkeypatch.setattr(sys, "argv", ["experiments/benchmark.py", kind, *own, *flags])
        benchmark.main()
        return read_benchmark(output), capsys.readouterr().out

    monkeypatch.setattr(datamodules.cifar10, "synthetic_cifar10", few_images)
    monkeypatch.setattr(data, "Step", small_step)
    monkeypatch.setattr(time_to_accuracy, "start", run_in_this_process)
    monkeypatch.setattr(rows, "batches_per_second", train_in_this_process)
    monkeypatch.setitem(timing.SIZES, "cpu", (64,))
    monkeypatch.setitem(timing.COPIED, "cpu", 2**16)
    return measured


def printed(table, capsys):
    print_table(table)
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_every_subcommand_records_what_its_table_shows(kind, measured, capsys):
    record, output = measured(kind, *TOY[kind])
    assert record.kind == kind
    assert record.rows
    assert not any(row.get("error") or row.get("limits_error") for row in record.rows)
    assert record.settings["device"] == "cpu"
    module = import_module(f"experiments.benchmarks.{kind.replace('-', '_')}")
    assert printed(module.table(record.rows), capsys) in output


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "KIND"),
        (["speed"], "speed"),
        (["data", "--images=0"], "--images"),
        (["data", "--workers=none"], "--workers"),
        (["data", "--presets=sam_restnet"], "did you mean sam_resnet"),
        (["data", "--presets=sam_resnet", "--share=resnet"], "--share"),
        (["step", "--arch=sam_restnet"], "did you mean sam_resnet"),
        (["step", "--arch=resnet", "--compile=fastest"], "fastest"),
        (["overhead", "--steps=0"], "--steps"),
        (["overhead", "--steps=49"], "--steps must be at most 48, the batches of an epoch, got 49"),
        (["overhead", "--repeats=1", "--", "--trainer.max_epoch=3"], "--trainer.max_epoch"),
        (["overhead", "--", "--trainer.accumulate_grad_batches=2"], "accumulate_grad_batches must"),
        (["overhead", "--", "--trainer.gradient_clip_algorithm=value"], "clip_algorithm must be"),
        (["rows", "--rows-at-once=1"], "--rows-at-once: must be 2 or more, got 1"),
        (["rows", "--", "--trainer.max_epoch=3"], "--trainer.max_epoch"),
        (["gpu", "--rows=overheads"], "did you mean overhead"),
        (["time-to-accuracy", "--airbench=none.py"], "none.py is not a file"),
        (["time-to-accuracy", "--airbench=a.py", "--beside=b"], "--airbench takes the place"),
        (["time-to-accuracy", "--target=94"], "--target"),
        (["time-to-accuracy", "--strategy=ema"], "--strategy"),
        (["predict", "--repeats=0"], "--repeats"),
        (["predict", "--run=nowhere"], "nowhere"),
        (["predict", "--run=nowhere", "--arch=resnet"], "--arch"),
        (["predict", "--imges=5"], "--imges"),
    ],
)
def test_a_mistake_gives_one_line_with_its_name(flags, named, monkeypatch, refusal):
    monkeypatch.setattr(sys, "argv", ["experiments/benchmark.py", *flags])
    assert named in refusal(act=benchmark.main)


@pytest.mark.parametrize("output", ["", "file/benchmark.json"])
def test_a_record_that_cannot_be_written_is_found_before_measuring(
    output, tmp_path, monkeypatch, refusal
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(predict, "measure", lambda _: pytest.fail("measured"))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "predict", f"--output={tmp_path / output}"])
    assert str(tmp_path) in refusal(act=benchmark.main)


def test_a_full_disk_does_not_hide_the_measurements(tmp_path, monkeypatch, refusal):
    shown = []
    monkeypatch.setattr(predict, "measure", lambda _: [{"accuracy": 0.9}])
    monkeypatch.setattr(predict, "table", lambda rows: shown.append(rows) or "table")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record, "write_record", full)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "predict", f"--output={tmp_path / 'a.json'}"])
    assert "No space left" in refusal(act=benchmark.main)
    assert shown == [[{"accuracy": 0.9}]]


@pytest.mark.trust
def test_trainings_at_once_are_processes_with_the_same_window():
    arguments = ["--arch=sam_resnet", *SMALL, "--trainer.accelerator=cpu", "--wandb=disabled",
                 "--data.val_fraction=0", "--data.batch_size=8"]  # fmt: skip
    speeds = rows.batches_per_second(arguments, 2, 1, 3)
    assert len(speeds) == 2
    assert min(speeds) > 0
    steps = "--trainer.max_steps=3"
    with pytest.raises(UserError, match=r"must fit into the training, which has 3 batches$"):
        rows.batches_per_second([*arguments, steps], 2, 1, 3)


def test_sides_alternate_in_an_order_reversed_each_round():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = alternate(sides, repeats=3, device=CPU)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"  # the first three warm up
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_sides_need_a_round():
    with pytest.raises(ValueError, match="repeats must be 1 or more, got 0"):
        alternate({"a": list}, repeats=0, device=CPU)


def test_a_ratio_is_of_medians_and_its_range_of_ratios_within_rounds():
    assert asdict(ratio([2, 9, 4], [1, 3, 8])) == {"median": 4 / 3, "low": 0.5, "high": 3}


def test_presets_with_the_same_augmentation_are_measured_once(monkeypatch):
    compared = []

    def compare(settings, flags):
        compared.append(settings)
        return {"images_per_second": 1000.0}

    monkeypatch.setattr(data, "compare", compare)
    flags = argparse.Namespace(presets=None, share=None, root=None, source="auto")
    rows = list(data.measure(flags))
    assert sorted(name for row in rows for name in row["presets"]) == sorted(EXPERIMENTS)
    assert len({tuple(row["presets"]) for row in rows}) == len(rows) < len(EXPERIMENTS)
    shown = {(data.in_words(settings), settings["batch_size"]) for settings in compared}
    assert len(shown) == len(rows)
    assert "zero crop, flip, Cutout 16" in {words for words, _ in shown}


@pytest.mark.parametrize("preset", EXPERIMENTS)
def test_the_stock_way_has_each_strength_of_a_preset(preset):
    settings = resolve_config(["--arch", preset])["data"]
    steps = {type(step): step for step in stock.stock_transform(settings).transforms}
    assert steps[v2.RandomCrop].padding == [settings["crop_padding"]] * 4
    assert (steps[v2.RandomCrop].padding_mode == "reflect") == (settings["crop_mode"] == "reflect")
    assert steps[v2.RandomHorizontalFlip].p == settings["flip"] == 0.5
    assert (v2.RandomRotation in steps) == (settings["rotation"] > 0)
    assert (stock.Cutout in steps) == (settings["cutout"] > 0)
    if v2.RandomRotation in steps:
        assert tuple(steps[v2.RandomRotation].degrees) == (
            -settings["rotation"],
            settings["rotation"],
        )
    if v2.RandomPerspective in steps:
        perspective = steps[v2.RandomPerspective]
        assert perspective.distortion_scale == settings["perspective"]
        assert perspective.p == settings["perspective_p"]
    for name in ("brightness", "contrast", "saturation"):
        strength = settings[name]
        low, high = getattr(steps.get(v2.ColorJitter), name, None) or (1, 1)
        assert (low, high) == (1 - strength, 1 + strength)


def test_the_stock_hole_has_the_same_place_as_ours(monkeypatch):
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor(CIFAR10_MEAN), torch.tensor(CIFAR10_STD)
    normalised = normalise(image[None], mean, std)
    for y, x in [(0, 31), (16, 16), (8, 24), (31, 0)]:
        draws = iter([torch.tensor(y), torch.tensor(x)])
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", lambda *_: next(draws))  # noqa: B023
            holed = stock.Cutout(16)(normalised[0])
        ours = cutout(normalised, torch.tensor([y]), torch.tensor([x]), 16, (0.0, 0.0, 0.0))
        assert torch.equal(holed, ours[0])


def test_the_stock_way_has_a_presets_policy_between_geometry_and_cutout():
    flags = ["--data.policy=rand_augment", "--data.rand_augment_n=3", "--data.cutout=8"]
    settings = resolve_config(["--arch", "resnet", *flags])["data"]
    steps = stock.stock_transform(settings).transforms
    (place,) = [i for i, step in enumerate(steps) if isinstance(step, v2.RandAugment)]
    assert steps[place].num_ops == 3
    assert isinstance(steps[place - 1], v2.RandomHorizontalFlip)
    assert isinstance(steps[-1], stock.Cutout)


def test_augmix_is_refused_rather_than_left_out():
    settings = resolve_config(["--arch", "resnet"])["data"] | {"policy": "augmix"}
    with pytest.raises(Exception, match="augmix"):
        stock.stock_transform(settings)


def test_torchvisions_way_gives_normalised_batches_and_soft_targets_if_mixed(few_images):
    images, labels = few_images("train")
    settings = resolve_config(["--arch", "enhanced_efficient_resnet"])["data"]
    module = data.CIFAR10DataModule(**settings | {"mixup_p": 1.0, "cutmix_p": 0.0})
    ours = data.TrainLoader(
        *(images, labels, 128, 0, module.mean, module.std, module.augmentation, module.mixing, 1)
    )
    loader = stock.stock_loader(dict(module.hparams), ours, batches=1, workers=1)
    ((images, targets),) = list(loader)
    assert images.shape == (128, 3, 32, 32)
    assert images.dtype == torch.float32
    assert -3 < images.mean() < 3
    assert targets.shape == (128, 10)
    assert torch.allclose(targets.sum(1), torch.ones(128))


def test_predictions_on_validation_equal_those_of_evaluate(measured, experiment):
    run = experiment("--data.eval_batch_size=64")
    record, _ = measured("predict", f"--run={run.folder}", "--repeats=1")
    rows = {row["strategy"]: row for row in record.rows}
    assert set(rows) == {"plain", "flip", "six-view", "adaptive"}
    assert {row["split"] for row in rows.values()} == {"val"}
    assert {row["images"] for row in rows.values()} == {200}
    assert run.record is not None
    assert rows["plain"]["accuracy"] == run.record.scores["val"]["raw"].accuracy
    assert 0 <= rows["adaptive"]["unsure"] <= 1
    assert rows["plain"]["unsure"] is None


def test_prediction_is_timed_in_evaluates_batches_of_the_device(measured, experiment, monkeypatch):
    run = experiment("--data.eval_batch_size=null")
    sizes = set()

    def spy(images, mean, std):
        sizes.add(len(images))
        return normalise(images, mean, std)

    monkeypatch.setattr(evaluation, "eval_batch_size", lambda device: 120)
    monkeypatch.setattr(datamodules.tensor_loader, "normalise", spy)
    measured("predict", f"--run={run.folder}", "--repeats=1")
    assert sizes == {120, 80}  # of 200 validation images


def test_a_run_without_validation_is_timed_on_test_images_and_not_scored(measured, experiment):
    run = experiment("--data.val_fraction=0")
    record, _ = measured("predict", f"--run={run.folder}", "--repeats=1", "--images=20")
    assert {row["split"] for row in record.rows} == {"test"}
    assert {row["accuracy"] for row in record.rows} == {None}
