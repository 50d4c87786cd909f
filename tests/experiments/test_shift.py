"""A tiny run under distribution shift, scored again by hand."""

import io
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import datamodules.cifar10
import datamodules.corruptions
from datamodules import CIFAR10DataModule
from datamodules.corruptions import CORRUPTIONS, corrupt
from datamodules.facts import CIFAR10_MEAN as MEAN
from datamodules.facts import CIFAR10_STD as STD
from datamodules.synthetic import synthetic_cifar10
from experiments.console import UserError
from experiments.evaluate import main
from experiments.inference.finished import FinishedRun, open_run
from experiments.inference.shift import single_views
from experiments.records.record import (
    Calibration,
    Shift,
    ShiftScore,
    read_record,
    read_shift,
    write_record,
)
from lightning_modules.prediction import fit_temperature

BENCHMARK = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression",
)  # fmt: skip
IMAGES = 60
SEVERITIES = [2, 5]


@cache
def few_images(split: str, **_: int) -> tuple[Tensor, Tensor]:
    return synthetic_cifar10(split, per_class=200 if split == "train" else IMAGES // 10)  # type: ignore[arg-type]


def evaluate(*arguments: Any, severities: Sequence[int] = (1, 2, 3, 4, 5)) -> str:
    """Run `evaluate.py` with these severities of CIFAR-10-C; return its output."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(datamodules.corruptions, "SEVERITIES", severities)
        patch.setattr(sys, "argv", ["experiments/evaluate.py", *map(str, arguments)])
        patch.setattr(datamodules.cifar10, "synthetic_cifar10", few_images)
        main()
    return printed.getvalue()


@pytest.fixture(scope="module")
def trained(experiment: Callable[..., Any]) -> Path:
    flags = ("--data.cutout=0", "--data.mixup_alpha=0", "--trainer.limit_train_batches=40")
    folder: Path = experiment(*flags, images=few_images).folder
    return folder


@dataclass(frozen=True)
class Shifted:
    folder: Path
    printed: str
    shift: Shift


@pytest.fixture(scope="module")
def shifted(trained: Path) -> Shifted:
    printed = evaluate(trained, "--shift", severities=SEVERITIES)
    return Shifted(trained, printed, read_shift(trained / "shift.json"))


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run without its evaluation."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("shift.json"))
    return folder


def log_probabilities(folder: Path, weights: str, images: Tensor) -> np.ndarray:
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    with torch.no_grad():
        logits = open_run(folder).network(weights)((images / 255 - mean) / std).double().numpy()
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def by_hand(logits: np.ndarray, labels: Tensor) -> dict[str, float]:
    """NLL and Brier score, computed by hand."""
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y = np.eye(10)[labels.numpy()]
    return {"nll": -np.log((p * y).sum(axis=1)).mean(), "brier": ((p - y) ** 2).sum(axis=1).mean()}


def check(score: ShiftScore, logits: np.ndarray, labels: Tensor, temperature: float) -> None:
    assert score.accuracy == pytest.approx((logits.argmax(axis=1) == labels.numpy()).mean())
    for found, t in ((score.as_it_is, 1.0), (score.fitted, temperature)):
        assert found
        for measure, expected in by_hand(logits / t, labels).items():
            assert getattr(found, measure) == pytest.approx(expected, rel=1e-4), measure


@pytest.mark.parametrize(
    ("corruption", "position"), [("gaussian_noise", 0), ("fog", 1), ("spatter", 1)]
)
def test_each_image_set_is_scored_as_by_hand(
    shifted: Shifted, corruption: str, position: int
) -> None:
    images, labels = few_images("test")
    corrupted = corrupt(images, corruption, SEVERITIES[position], seed=0)
    logits = {
        "plain": log_probabilities(shifted.folder, "raw", corrupted),
        "ema": log_probabilities(shifted.folder, "ema", corrupted),
    }
    logits["ensemble"] = 0.4 * logits["plain"] + 0.6 * logits["ema"]
    assert list(shifted.shift.strategies) == ["plain", "ema", "ensemble"]
    for name, result in shifted.shift.strategies.items():
        assert result.temperature
        check(result.corrupted[corruption][position], logits[name], labels, result.temperature)


def test_temperatures_are_fitted_on_clean_validation_images(shifted: Shifted) -> None:
    arrays = np.load(shifted.folder / "predictions.npz")
    for strategy, weights in (("plain", "raw"), ("ema", "ema")):
        logits, labels = (torch.from_numpy(arrays[f"val_{x}"]) for x in (weights, "labels"))
        expected = fit_temperature(logits, labels)
        assert shifted.shift.strategies[strategy].temperature == pytest.approx(expected, rel=1e-4)


def test_the_clean_score_equals_the_runs(shifted: Shifted) -> None:
    scores = open_run(shifted.folder).record.scores["test"]
    for strategy, weights in (("plain", "raw"), ("ema", "ema")):
        clean = shifted.shift.strategies[strategy].clean
        assert clean.accuracy == pytest.approx(scores[weights].accuracy)
        assert clean.as_it_is.nll == pytest.approx(scores[weights].nll, rel=1e-4)
        assert clean.as_it_is.ece == pytest.approx(scores[weights].ece, abs=1e-5)


def test_mean_corruption_error_is_the_mean_of_means_over_15_and_over_19(shifted: Shifted) -> None:
    for result in shifted.shift.strategies.values():
        assert list(result.corrupted) == list(CORRUPTIONS)
        errors = {c: np.mean([1 - x.accuracy for x in xs]) for c, xs in result.corrupted.items()}
        assert result.mean_15.mce == pytest.approx(np.mean([errors[c] for c in BENCHMARK]))
        assert result.mean_19.mce == pytest.approx(np.mean(list(errors.values())))
        assert result.mean_15.mce > 1 - result.clean.accuracy
        for measure in ("nll", "brier", "ece", "classwise_ece"):
            values = [getattr(x.fitted, measure) for c in BENCHMARK for x in result.corrupted[c]]
            assert getattr(result.mean_15.fitted, measure) == pytest.approx(np.mean(values))


def test_the_record_contains_its_provenance_and_can_be_read_again(
    shifted: Shifted, tmp_path: Path
) -> None:
    shift = open_run(shifted.folder).shift()
    assert shift == shifted.shift
    assert shift.run == shifted.folder.name
    assert shift.command == (f"python experiments/evaluate.py {shifted.folder} --shift")
    assert (shift.source, shift.precision) == ("synthetic", "32-true")
    assert (shift.corruptions, shift.seed) == ("generated", 0)
    assert (shift.severities, shift.images) == (SEVERITIES, IMAGES)
    assert "torch" in shift.versions
    write_record(shift, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (shifted.folder / "shift.json").read_text()


def test_the_tables_show_the_records_values(shifted: Shifted) -> None:
    lines = shifted.printed.splitlines()
    assert max(map(len, lines)) <= 100
    assert "SYNTHETIC" in lines[0]
    assert "severities 2, 5." in " ".join(shifted.printed.split())
    rows = [[x.strip() for x in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    results = shifted.shift.strategies.values()
    for corruption in CORRUPTIONS:
        [cells] = [cells for cells in rows if cells[0] == corruption.replace("_", " ")]
        accuracies = [np.mean([x.accuracy for x in r.corrupted[corruption]]) for r in results]
        assert cells[1:4] == [f"{accuracy:.2%}" for accuracy in accuracies]
    [cells] = [cells for cells in rows if cells[0] == "severity 5"]
    ece = np.mean(
        [r.corrupted[c][1].as_it_is.ece for r in [next(iter(results))] for c in BENCHMARK]
    )
    assert cells[4].startswith(f"{ece:.3f}/")
    for label, mean in (("mCE, the benchmark's 15", "mean_15"), ("mCE, all 19", "mean_19")):
        first = next(i for i, cells in enumerate(rows) if cells[0] == label) + 1
        for i, result in enumerate(results):
            x = getattr(result, mean)
            assert rows[first + 2 * i][1] == f"{x.mce:.2%}"
            assert rows[first + 2 * i][3] == f"{x.as_it_is.nll:.4f}"
            assert rows[first + 2 * i + 1][5] == f"{x.fitted.ece:.4f}"


def save_cifar10_c(folder: Path, severities: list[int]) -> Path:
    """Save CIFAR-10-C in the official format; all other severities are black images."""
    images, labels = few_images("test")
    folder.mkdir()
    for name in CORRUPTIONS:
        parts = [
            corrupt(images, name, severity) if severity in severities else torch.zeros_like(images)
            for severity in range(1, 6)
        ]
        np.save(folder / f"{name}.npy", torch.cat(parts).permute(0, 2, 3, 1).numpy())
    np.save(folder / "labels.npy", labels.repeat(5).numpy().astype(np.uint8))
    return folder


def test_published_arrays_and_cifar10_1_are_scored(
    shifted: Shifted, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = save_cifar10_c(tmp_path / "CIFAR-10-C", [2])
    images, labels = (x[:33] for x in few_images("train"))
    np.save(tmp_path / "cifar10.1_v6_data.npy", images.permute(0, 2, 3, 1).numpy())
    np.save(tmp_path / "cifar10.1_v6_labels.npy", labels.numpy().astype(np.int32))
    folders = ("--cifar10c", published, "--cifar101", tmp_path)
    shutil.copy(shifted.folder / "shift.json", copy)
    # Synthetic images replace CIFAR-10's.
    record = read_record(copy / "result.json")
    write_record(replace(record, source="cifar10"), copy / "result.json")
    data = CIFAR10DataModule(**record.config["data"])
    data.prepare_data()
    monkeypatch.setattr(FinishedRun, "data", lambda *_: data)
    printed = evaluate(copy, "--shift", *folders, severities=[2])
    shift = read_shift(copy / "shift_published.json")
    assert open_run(copy).shift() == shift
    assert read_shift(copy / "shift.json") == shifted.shift
    assert (shift.corruptions, shift.seed) == ("published", None)
    # The files contain the generated images, so the scores must be equal.
    for name, result in shift.strategies.items():
        generated = shifted.shift.strategies[name]
        for corruption, [score] in result.corrupted.items():
            assert score == generated.corrupted[corruption][0]
        assert generated.cifar10_1 is None
    plain = shift.strategies["plain"]
    assert plain.cifar10_1
    assert plain.temperature
    logits = log_probabilities(copy, "raw", images)
    check(plain.cifar10_1, logits, labels, plain.temperature)
    assert "as published" in printed
    assert "CIFAR-10.1" in printed


@pytest.mark.parametrize("flags", [("--images", 20), ("--severities", 3)])
def test_a_part_of_the_benchmark_is_printed_and_not_recorded(
    copy: Path, shifted: Shifted, flags: tuple[str, int]
) -> None:
    shutil.copy(shifted.folder / "shift.json", copy)
    printed = " ".join(evaluate(copy, "--shift", *flags, severities=[3, 5]).split())
    count, severities = (20, "3, 5") if flags[0] == "--images" else (IMAGES, "3")
    assert f"The first {count} test images, severities {severities}." in printed
    assert read_shift(copy / "shift.json") == shifted.shift
    images, labels = (x[:count] for x in few_images("test"))
    expected = (log_probabilities(copy, "raw", images).argmax(axis=1) == labels.numpy()).mean()
    assert f"│ clean │ {expected:.2%} │" in printed


def test_an_edited_shift_record_is_rejected_and_an_older_one_is_not(
    copy: Path, shifted: Shifted
) -> None:
    text = (shifted.folder / "shift.json").read_text()
    edited = text.replace('"mce": 0.', '"mce": 0.0', 1)
    assert edited != text
    (copy / "shift.json").write_text(edited)
    with pytest.raises(UserError, match="it was edited"):
        open_run(copy).shift()
    (copy / "shift.json").write_text(re.sub(r'"digest": "\w+"', '"digest": null', text))
    assert open_run(copy).shift() == shifted.shift


def test_without_validation_nothing_is_fitted(copy: Path) -> None:
    record = read_record(copy / "result.json")
    record.config["data"]["val_fraction"] = 0.0
    del record.scores["val"]
    write_record(record, copy / "result.json")
    evaluate(copy, "--shift", severities=[1])
    for result in read_shift(copy / "shift.json").strategies.values():
        assert result.temperature is None
        assert result.mean_19.fitted is None
        assert isinstance(result.mean_19.as_it_is, Calibration)


def test_an_average_is_joined_with_the_raw_weights_whichever_it_is() -> None:
    assert list(single_views(["raw"])) == ["plain"]
    strategies = single_views(["raw", "swa"])
    assert list(strategies) == ["plain", "swa", "ensemble"]
    assert strategies["ensemble"].networks == {"raw": 0.4, "swa": 0.6}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "5"], "--images needs --shift"),
        (["--cifar10c", "x"], "--cifar10c needs --shift"),
        (["--shift", "--strategies"], "--shift takes no --strategies"),
        (["--shift", "--only", "flip"], "--shift takes no --only"),
        (["--shift", "--severities", "1,6"], "--severities must be some of 1,2,3,4,5, got '6'"),
        (["--shift", "--severities", ""], "--severities must be some of 1,2,3,4,5, got ''"),
        (["--shift", "--images", "0"], "--images must be 1 or more, got 0"),
        (["--shift", "--images", "all"], "argument --images: invalid int value: 'all'"),
        (["--shift", "--images", "61"], "--images must be at most 60, the size of the test set"),
        (["--shift", "--cifar10c", "no"], "no/gaussian_noise.npy is not an array as published"),
        (["--shift", "--cifar101", "no"], "--cifar101 contains photographs, but "),
    ],
)
def test_a_mistake_gives_one_line_and_writes_nothing(
    refusal: Callable[..., str], copy: Path, flags: list[str], message: str
) -> None:
    before = sorted(copy.iterdir())
    assert refusal(copy, *flags, act=evaluate).startswith(message)
    assert sorted(copy.iterdir()) == before


def test_arrays_of_another_test_set_are_refused(
    refusal: Callable[..., str], copy: Path, tmp_path: Path
) -> None:
    published = save_cifar10_c(tmp_path / "other", [])
    np.save(published / "labels.npy", few_images("test")[1].roll(1).repeat(5).numpy())
    line = refusal(copy, "--shift", "--cifar10c", published, act=evaluate)
    assert line == f"{published}/labels.npy must hold the labels of the test set 5 times"
    assert not (copy / "shift.json").exists()
