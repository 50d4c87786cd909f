"""The commands for finished runs work with a run that was trained on a GPU."""

import csv
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import datamodules.cifar10
import experiments.evaluate
import experiments.export
import experiments.inference.evaluation
import experiments.predict
from experiments.records.record import read_evaluation

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def run(experiment):
    """A small run in bf16 with raw and EMA weights."""
    flags = ("--trainer.precision=bf16-mixed", "--trainer.limit_train_batches=40")
    return experiment("--trainer.accelerator=gpu", *flags, "--data.mixup_alpha=0")


@pytest.fixture
def call(run, few_images, monkeypatch):
    """Call a command with the run and these arguments."""
    monkeypatch.setattr(datamodules.cifar10, "synthetic_cifar10", few_images)
    monkeypatch.setattr(experiments.inference.evaluation, "TIMED", 50)

    def call(module, *arguments):
        argv = [f"{module.__name__}.py", str(run.folder), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        module.main()

    return call


def test_evaluate_scores_as_the_run_did(call, run):
    call(experiments.evaluate)
    evaluation = read_evaluation(run.folder / "evaluation.json")
    assert torch.cuda.get_device_name() in evaluation.device
    assert evaluation.precision == "bf16-mixed"
    for strategy, weights in (("plain", "raw"), ("ema", "ema")):
        for split, images in (("val", 200), ("test", 300)):
            found = evaluation.strategies[strategy].scores[split].accuracy
            expected = run.record.scores[split][weights].accuracy
            assert found == pytest.approx(expected, abs=2 / images)


def test_evaluate_works_in_32_bits_too(call, capsys):
    call(experiments.evaluate, "--only=ema+tta", "--precision=32-true")
    assert "ema+tta" in capsys.readouterr().out


def test_distribution_shift_is_evaluated(call, capsys):
    call(experiments.evaluate, "--shift", "--images=50", "--severities=1")
    assert "gaussian" in capsys.readouterr().out.lower()


@pytest.mark.parametrize(("strategy", "weights"), [("plain", "raw"), ("ema", "ema")])
def test_predict_equals_the_runs_predictions(
    call, run, few_images, tmp_path, monkeypatch, strategy, weights
):
    monkeypatch.chdir(tmp_path)
    pixels = few_images("test")[0].permute(0, 2, 3, 1).numpy()
    Path("set.pkl").write_bytes(pickle.dumps({b"data": pixels}))
    call(experiments.predict, "set.pkl", "--strategy", strategy)
    _, *rows = csv.reader(Path("submission.csv").read_text().splitlines())
    found = np.array([int(label) for _, label in rows])
    with np.load(run.folder / "predictions.npz") as arrays:
        expected = arrays[f"test_{weights}"].argmax(1)
    # The run predicted in bf16, but predict.py uses 32 bits.
    assert (found == expected).mean() > 0.95


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_writes_files_with_the_runs_predictions(call, tmp_path, dtype):
    folder = tmp_path / "exported"
    call(experiments.export, f"--dtype={dtype}", f"--output={folder}", "--verify")
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "model.pt2", "model.onnx", "README.md"} <= names
