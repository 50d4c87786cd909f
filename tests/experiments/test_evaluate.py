"""Finished runs are evaluated; metrics and intervals equal computations by hand."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import datamodules.cifar10
import experiments.inference.evaluation
from datamodules.facts import CIFAR10_MEAN
from datamodules.synthetic import synthetic_cifar10
from experiments import console
from experiments.evaluate import main
from experiments.inference.evaluation import calibration, paired_bootstrap
from experiments.inference.strategies import FIGURE_1, STRATEGIES, strategies_for
from experiments.records.record import Evaluation, read_evaluation, write_record
from lightning_modules.prediction import fit_temperature

# A small network, trained long enough for useful probabilities.
LEARNING = (
    "--model.blocks=[1,1,1]",
    "--data.cutout=0",
    "--data.mixup_alpha=0",
    "--data.eval_batch_size=50",
    "--trainer.limit_train_batches=40",
)


@cache
def few_images(split: str, **_: int) -> tuple[Tensor, Tensor]:
    """The images that runs of the fixture `experiment` use."""
    return synthetic_cifar10(split, per_class=200 if split == "train" else 30)  # type: ignore[arg-type]


def with_other_test_labels(split: str, **_: int) -> tuple[Tensor, Tensor]:
    images, labels = few_images(split)
    return images, labels.roll(1) if split == "test" else labels


def evaluate(*arguments: Any, data: Callable[..., Any] = few_images) -> str:
    """Run `evaluate.py` in this process; return its output."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, "argv", ["experiments/evaluate.py", *map(str, arguments)])
        patch.setattr(datamodules.cifar10, "synthetic_cifar10", data)
        patch.setattr(experiments.inference.evaluation, "TIMED", 50)
        main()
    return printed.getvalue()


def rows(printed: str) -> list[list[str]]:
    """The cells of the printed tables, without the mark of the chosen strategy."""
    lines = [line for line in printed.splitlines() if line.startswith("│")]
    return [[cell.rstrip(" *").strip() for cell in line.split("│")[1:-1]] for line in lines]


@dataclass(frozen=True)
class Evaluated:
    folder: Path
    without_ema: Path
    printed: str
    evaluation: Evaluation


@pytest.fixture(scope="session")
def evaluated(experiment: Callable[..., Any]) -> Evaluated:
    """A run with raw and EMA weights, evaluated together with a run without EMA."""
    folder = experiment(*LEARNING).folder
    without_ema = experiment(*LEARNING, "--ema=false", "--seed=1").folder
    printed = evaluate(folder, without_ema).partition("└")[0]
    return Evaluated(folder, without_ema, printed, read_evaluation(folder / "evaluation.json"))


@pytest.fixture
def copies(evaluated: Evaluated, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the two runs, without evaluations."""
    folders = tmp_path / "with", tmp_path / "without"
    for copy, original in zip(folders, (evaluated.folder, evaluated.without_ema), strict=True):
        written_later = shutil.ignore_patterns("evaluation.json", "ensemble.json")
        shutil.copytree(original, copy, ignore=written_later)
    return folders


@pytest.fixture
def copy(copies: tuple[Path, Path]) -> Path:
    return copies[0]


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((folder / "result.json").read_text())
    change(record)
    record["digest"] = None  # otherwise it would reveal the edit
    (folder / "result.json").write_text(json.dumps(record))


def test_every_strategy_is_scored_on_validation_and_test(evaluated: Evaluated) -> None:
    strategies = evaluated.evaluation.strategies
    assert set(strategies) == set(strategies_for(["raw", "ema"]))
    for result in strategies.values():
        assert {split: x.images for split, x in result.scores.items()} == {"val": 200, "test": 300}
        assert result.seconds > 0
        for x in result.scores.values():
            assert x.gain_low <= x.gain <= x.gain_high


def test_single_views_score_as_the_run_did(evaluated: Evaluated) -> None:
    record = json.loads((evaluated.folder / "result.json").read_text())
    for strategy, weights in (("plain", "raw"), ("ema", "ema")):
        for split in ("val", "test"):
            ours = evaluated.evaluation.strategies[strategy].scores[split]
            theirs = record["scores"][split][weights]
            assert ours.accuracy == pytest.approx(theirs["accuracy"])
            assert ours.as_it_is.nll == pytest.approx(theirs["nll"], rel=1e-5)
            assert ours.as_it_is.ece == pytest.approx(theirs["ece"], abs=1e-5)


def test_the_temperature_is_fitted_on_validation(evaluated: Evaluated) -> None:
    arrays = np.load(evaluated.folder / "predictions.npz")
    logits, labels = torch.from_numpy(arrays["val_raw"]), torch.from_numpy(arrays["val_labels"])
    plain = evaluated.evaluation.strategies["plain"]
    assert plain.temperature == pytest.approx(fit_temperature(logits, labels), rel=1e-4)
    logits, labels = torch.from_numpy(arrays["test_raw"]), torch.from_numpy(arrays["test_labels"])
    assert plain.temperature != pytest.approx(fit_temperature(logits, labels), rel=1e-3)
    for result in evaluated.evaluation.strategies.values():
        x = result.scores["val"]
        assert x.fitted
        assert x.fitted.nll <= x.as_it_is.nll + 1e-9


def test_the_best_on_validation_is_chosen_and_marked(evaluated: Evaluated) -> None:
    evaluation = evaluated.evaluation
    accuracies = {name: x.scores["val"].accuracy for name, x in evaluation.strategies.items()}
    assert evaluation.chosen
    assert accuracies[evaluation.chosen] == max(accuracies.values())
    assert evaluated.printed.count(f" {evaluation.chosen} *") == 2


def test_test_labels_decide_nothing(evaluated: Evaluated, copy: Path) -> None:
    evaluate(copy, data=with_other_test_labels)
    other = read_evaluation(copy / "evaluation.json")
    assert other.chosen == evaluated.evaluation.chosen
    for name, result in evaluated.evaluation.strategies.items():
        assert other.strategies[name].temperature == result.temperature
        assert other.strategies[name].scores["val"] == result.scores["val"]
        assert other.strategies[name].scores["test"] != result.scores["test"]


def test_an_evaluation_contains_its_provenance_and_can_be_read_again(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    evaluation = evaluated.evaluation
    assert evaluation.runs == [evaluated.folder.name]
    assert evaluation.command == (
        f"python experiments/evaluate.py {evaluated.folder} {evaluated.without_ema}"
    )
    assert (evaluation.source, evaluation.precision) == ("synthetic", "32-true")
    assert "torch" in evaluation.versions
    definition = evaluation.strategies["tta+ensemble"].strategy
    assert definition["networks"] == {"raw": 0.4, "ema": 0.6}
    assert definition["claim"] == 0.9299
    again = tmp_path / "again.json"
    write_record(evaluation, again)
    assert again.read_text() == (evaluated.folder / "evaluation.json").read_text()


def test_the_table_has_every_strategy_and_names_synthetic_images(evaluated: Evaluated) -> None:
    assert "SYNTHETIC" in evaluated.printed
    on_test = rows(evaluated.printed.partition(" test,")[2])
    for name, result in evaluated.evaluation.strategies.items():
        x = result.scores["test"]
        (cells,) = (cells for cells in on_test if cells[0] == name)
        assert cells[1] == f"{x.accuracy:.2%}"
        assert cells[4:8] == [
            f"{value:.4f}"
            for value in (
                x.as_it_is.nll, x.as_it_is.brier, x.as_it_is.ece, x.as_it_is.classwise_ece,
            )
        ]  # fmt: skip


def test_figure_1_is_reprinted_from_the_record_without_images(evaluated: Evaluated) -> None:
    def no_images(split: str) -> None:
        raise AssertionError

    printed = evaluate(evaluated.folder, "--strategies", data=no_images)
    assert "not comparable" in printed
    scores = [evaluated.evaluation.strategies[name].scores["test"] for name in FIGURE_1]
    assert [cells[:4] for cells in rows(printed)] == [
        ["plain", "92.56%", f"{scores[0].accuracy:.2%}", ""],
        ["tta", "92.87%", f"{scores[1].accuracy:.2%}", "+0.31"],
        ["ensemble", "92.72%", f"{scores[2].accuracy:.2%}", "+0.16"],
        ["tta+ensemble", "92.99%", f"{scores[3].accuracy:.2%}", "+0.43"],
        ["ema+tta", "92.94%", f"{scores[4].accuracy:.2%}", "+0.38"],
    ]


@pytest.mark.parametrize("flags", [("--root", "elsewhere"), ("--precision", "32-true")])
def test_figure_1_is_not_reprinted_for_unrelated_flags(
    refusal: Callable[..., str], evaluated: Evaluated, flags: tuple[str, str]
) -> None:
    line = refusal(evaluated.folder, "--strategies", *flags, act=evaluate)
    assert line == f"--strategies shows the recorded evaluation, which {flags[0]} cannot change"


def test_figure_1_comes_after_a_missing_evaluation(copies: tuple[Path, Path]) -> None:
    printed = evaluate(copies[1], "--strategies")
    assert (copies[1] / "evaluation.json").exists()
    # Without EMA weights there is no measured ensemble.
    assert ["tta+ensemble", "92.99%", "-", "+0.43", "-"] in rows(printed)


@pytest.mark.filterwarnings("ignore:You passed `Fabric")
def test_some_strategies_are_shown_with_plain_and_not_recorded(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY", 0)
    printed = evaluate(copy, "--only", "ema+flip,adaptive", "--precision", "16-mixed")
    names = {cells[0] for cells in rows(printed)} & set(STRATEGIES)
    assert names == {"plain", "ema+flip", "adaptive"}
    assert "strategies: 2 of 3, " in capsys.readouterr().err
    assert ", bf16-mixed." in printed  # a CPU replaces fp16 by bf16
    assert not (copy / "evaluation.json").exists()


def without_validation(record: dict[str, Any]) -> None:
    record["config"]["data"]["val_fraction"] = 0.0
    record["selected"] = None
    del record["scores"]["val"]


def test_without_validation_a_strategy_can_have_been_chosen_beforehand(
    refusal: Callable[..., str], copies: tuple[Path, Path]
) -> None:
    folder = copies[1]
    line = refusal(folder, "--chosen", "flip", act=evaluate)
    assert line == (
        f"--chosen is for runs without validation images, but {folder} has some: leave it out"
    )
    edit(folder, without_validation)
    printed = evaluate(folder, "--chosen", "flip")
    assert "* chosen beforehand." in printed
    evaluation = read_evaluation(folder / "evaluation.json")
    assert evaluation.chosen == "flip"
    assert evaluate(folder).count("flip *") == printed.count("flip *")  # it keeps the choice
    assert list(evaluation.strategies) == ["plain", "flip"]


def test_without_validation_nothing_is_fitted_and_nothing_chosen(
    copies: tuple[Path, Path],
) -> None:
    edit(copies[1], without_validation)
    evaluate(copies[1])
    evaluation = read_evaluation(copies[1] / "evaluation.json")
    assert evaluation.chosen is None
    for result in evaluation.strategies.values():
        assert result.temperature is None
        assert set(result.scores) == {"test"}
        assert result.scores["test"].fitted is None


def test_a_run_without_a_test_is_evaluated_on_the_test_set(
    experiment: Callable[..., Any],
) -> None:
    short = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=3")
    folder = experiment(*LEARNING, *short, "--test=false").folder
    evaluate(folder)
    plain = read_evaluation(folder / "evaluation.json").strategies["plain"]
    assert plain.scores.keys() == {"val", "test"}
    assert plain.scores["test"].images == 300


def test_runs_are_evaluated_alone_and_together(evaluated: Evaluated) -> None:
    folders = evaluated.folder, evaluated.without_ema
    together = read_evaluation(folders[0] / "ensemble.json")
    assert together.runs == [folder.name for folder in folders]
    networks = []
    for folder in folders:
        weights = json.loads((folder / "result.json").read_text())["selected"]
        networks.append(f"{folder.name}:{weights}")
        alone = read_evaluation(folder / "evaluation.json")
        plain = alone.strategies["plain" if weights == "raw" else weights]
        ours = together.strategies[networks[-1]]
        assert ours.scores["test"].accuracy == plain.scores["test"].accuracy
    assert together.strategies["ensemble"].strategy["networks"] == dict.fromkeys(networks, 1.0)
    on_validation = [together.strategies[name].scores["val"].accuracy for name in networks]
    assert together.strategies[together.baseline].scores["val"].accuracy == max(on_validation)


def break_checkpoints(folder: Path) -> None:
    for path in folder.glob("*.ckpt"):
        path.write_bytes(b"not a checkpoint")


def of_another_width(record: dict[str, Any]) -> None:
    record["config"]["model"]["base_width"] = 6


def of_another_split(record: dict[str, Any]) -> None:
    record["config"]["data"]["split_seed"] = 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: RUN"),
        (["missing"], "missing is not a folder: name the folder of a run"),
        (["."], ". holds no finished run: there is no result.json"),
        (["x", "--only", "ema+tat"], "--only ema+tat is unknown (did you mean ema+tta"),
        (["x", "y", "--only", "flip"], "--only takes one RUN and no --strategies"),
        (["x", "--chosen", "ema+tat"], "--chosen ema+tat is unknown (did you mean ema+tta"),
        (["x", "y", "--chosen", "flip"], "--chosen takes one RUN and no --strategies"),
        (["x", "--chosen", "flip", "--only", "tta"], "--chosen takes no --only"),
        (["x", "--shift", "--chosen", "flip"], "--shift takes no --chosen"),
        (["x", "--precision", "8-bit"], "argument --precision: invalid choice: '8-bit'"),
        (["x", "--strategy"], "unrecognized arguments: --strategy"),
    ],
)
def test_a_wrong_argument_gives_one_line(
    refusal: Callable[..., str],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(*arguments, act=evaluate).startswith(message)


def test_missing_ema_weights_give_one_line(
    refusal: Callable[..., str], evaluated: Evaluated
) -> None:
    without_ema = evaluated.without_ema
    line = refusal(without_ema, "--only", "tta+ensemble", act=evaluate)
    assert line == f"--only tta+ensemble: {without_ema} has no ema weights"


def test_runs_that_do_not_belong_together_are_refused(
    refusal: Callable[..., str], copies: tuple[Path, Path]
) -> None:
    copy, without_ema = copies
    assert "different names" in refusal(copy, copy, act=evaluate)
    edit(without_ema, lambda record: record["images"].update(mean=[0.4, 0.4, 0.5]))
    assert "an ensemble needs the same images" in refusal(copy, without_ema, act=evaluate)
    edit(without_ema, lambda record: record["images"].update(mean=list(CIFAR10_MEAN)))
    edit(copy, of_another_split)
    assert f"data.split_seed is 7 in {copy} and 0 in" in refusal(copy, without_ema, act=evaluate)


def of_an_older_version(record: dict[str, Any]) -> None:
    del record["arch"]


def of_missing_images(record: dict[str, Any]) -> None:
    record["source"] = "cifar10"
    record["config"]["data"]["download"] = False


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            break_checkpoints,
            "{}/best.ckpt is damaged or is not a checkpoint: File is not a zip file",
        ),
        (of_another_width, "{}/best.ckpt does not hold the weights of the sam_resnet that"),
        (of_an_older_version, "{}/result.json is not a valid record"),
        (of_missing_images, "CIFAR-10 is incomplete in nowhere"),
    ],
)
def test_a_run_that_cannot_be_evaluated_gives_one_line_and_is_unchanged(
    refusal: Callable[..., str], copy: Path, harm: Callable[[Any], None], message: str
) -> None:
    if harm is break_checkpoints:
        harm(copy)
    else:
        edit(copy, harm)
    before = sorted(copy.iterdir())
    line = refusal(copy, "--root", "nowhere", act=evaluate)
    assert line.startswith(message.format(copy))
    assert "--data." not in line  # a flag of run.py
    assert sorted(copy.iterdir()) == before


def some_predictions(n: int = 4_000) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, 10, generator=generator)
    return logits, torch.multinomial((logits / 1.5).softmax(1), 1, generator=generator)[:, 0]


def error_by_bins(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error by hand, with 15 bins of equal width."""
    bins = [(confidence >= i / 15) & (confidence < (i + 1) / 15) for i in range(15)]
    assert sum(map(np.sum, bins)) == len(confidence)
    gaps = [abs(right[b].mean() - confidence[b].mean()) * b.mean() for b in bins if b.any()]
    return float(sum(gaps))


def test_calibration_equals_a_computation_by_hand() -> None:
    logits, labels = some_predictions()
    ours = calibration(logits, labels)
    powers = np.exp(logits.double().numpy())
    p, y = powers / powers.sum(axis=1, keepdims=True), labels.numpy()
    is_label = np.eye(10)[y]
    by_class = [error_by_bins(p[:, c], is_label[:, c]) for c in range(10)]
    assert ours.nll == pytest.approx(-np.log(p[np.arange(len(y)), y]).mean())
    assert ours.brier == pytest.approx(((p - is_label) ** 2).sum(axis=1).mean())
    assert ours.ece == pytest.approx(error_by_bins(p.max(axis=1), p.argmax(axis=1) == y))
    assert ours.classwise_ece == pytest.approx(np.mean(by_class))
    # The network is overconfident, and a temperature corrects this.
    mended = calibration(logits / fit_temperature(logits, labels), labels)
    assert mended.ece < ours.ece / 2
    assert mended.classwise_ece < ours.classwise_ece


def test_the_interval_equals_a_bootstrap_over_images() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.random(400) < 0.9, generator.random(400) < 0.85
    difference = a.astype(float) - b
    draws = generator.integers(400, size=(20_000, 400))
    expected = np.quantile(difference[draws].mean(axis=1), [0.025, 0.975])
    low, high = paired_bootstrap(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose([low, high], expected, atol=0.003)
    assert low < difference.mean() < high
    assert (low, high) == paired_bootstrap(torch.from_numpy(a), torch.from_numpy(b))
    narrower = paired_bootstrap(torch.from_numpy(a), torch.from_numpy(b), level=0.5)
    assert low < narrower[0] < narrower[1] < high


def test_two_networks_with_equal_errors_do_not_differ() -> None:
    right = torch.arange(100) % 7 > 0
    assert paired_bootstrap(right, right) == (0.0, 0.0)
