"""That the sides of a benchmark do the same, and what comes of one that fails."""

import argparse
import sys

import pytest
import torch
from rich.console import Console
from torch import nn

import datamodules.cifar10
from experiments import benchmark
from experiments.benchmarks import step as steps
from experiments.benchmarks import time_to_accuracy
from experiments.benchmarks.benchmark_record import read_benchmark
from experiments.benchmarks.ceiling import SIZES, matmul_ceiling
from experiments.benchmarks.overhead import bare_seconds, trainer_seconds
from experiments.benchmarks.step import BASELINE, Step, Variant, chosen_variants, compare
from experiments.benchmarks.time_to_accuracy import read_report, table

CPU = torch.device("cpu")
CONSTANT_RATE = (
    "--model.schedule=triangular",
    "--model.rising=0",
    "--model.triangle=[1,1]",
)
SMALL = {"base_width": 4, "blocks": (1, 1, 1)}


def flags(**values):
    asked = {"compile": "both", "precision": "both", "memory_format": "both", "repeats": 1}
    size = {"batch_size": 2, "max_images": None, "device": "cpu"}
    return argparse.Namespace(**asked | size | values)


def weights(cli):
    return torch.cat([p.detach().flatten() for p in cli.model.network.parameters()])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_trainer_and_bare_loop_take_the_same_steps(build, precision, few_images, monkeypatch):
    """To the last bit, at a constant rate: the schedule is the Trainer's alone."""
    monkeypatch.setattr(datamodules.cifar10, "synthetic_cifar10", few_images)
    sides = []
    for train in (trainer_seconds, bare_seconds):
        cli = build(
            *CONSTANT_RATE,
            f"--trainer.precision={precision}",
            "--data.val_fraction=0",
            "--trainer.max_epochs=1",
            "--lookahead=false",
        )
        assert cli.trainer.gradient_clip_val == 1
        assert train(cli) > 0
        sides.append(weights(cli))
    assert torch.equal(*sides)


def test_all_eight_variants_are_the_default_and_the_baseline_comes_first():
    variants = chosen_variants(flags())
    assert len(set(variants)) == 8
    assert variants[0] == BASELINE
    assert chosen_variants(
        flags(compile="on", precision="bf16-mixed", memory_format="contiguous")
    ) == [Variant(compiled=True, precision="bf16-mixed", memory_format="contiguous")]


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_trains_in_its_variant(precision, memory_format):
    variant = Variant(False, precision, memory_format)
    step = Step("sam_resnet", SMALL, variant, 2, CPU)
    seen = []
    conv = [m for m in step.module.modules() if isinstance(m, nn.Conv2d)][1]
    conv.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    before = [p.detach().clone() for p in step.module.network.parameters()]
    step()
    ((images, output),) = seen
    last = memory_format == "channels_last"
    assert images.is_contiguous(memory_format=torch.channels_last) == last
    assert output.dtype == {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}[precision]
    after = step.module.network.parameters()
    assert all(not torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_memory_has_weights_gradients_momentum_and_activations():
    small, large = (
        Step("sam_resnet", SMALL, BASELINE, batch, CPU).peak_memory() for batch in (2, 4)
    )
    step = Step("sam_resnet", SMALL, BASELINE, 2, CPU)
    parameters = 4 * sum(p.numel() for p in step.module.parameters())
    assert small > 3 * parameters
    activations = large - small  # of two images
    assert small == pytest.approx(3 * parameters + activations, rel=0.3)


def test_a_variant_that_fails_is_a_row_with_its_error(monkeypatch):
    monkeypatch.setattr(steps, "Step", lambda arch, hparams, *rest: Step(arch, SMALL, *rest))
    variants = [BASELINE, Variant(True, "32-true", "contiguous")]
    with torch.compiler.set_stance("fail_on_recompile"):
        rows = compare("sam_resnet", variants, {"32-true": 1e9}, flags())
    eager, compiled = rows
    assert eager["error"] is None
    assert eager["images_per_second"] > 0
    assert eager["speedup"]["median"] == 1
    assert compiled["error"].startswith("RuntimeError: ")
    console = Console(width=200)
    with console.capture() as printed:
        console.print(steps.table(rows))
    assert "RuntimeError" in printed.get()


def test_a_limit_on_images_lowers_the_presets_batch_and_never_raises_it(monkeypatch):
    monkeypatch.setattr(steps, "Step", lambda arch, hparams, *rest: Step(arch, SMALL, *rest))
    sizes = [
        compare("sam_resnet", [BASELINE], {"32-true": 1e9}, flags(batch_size=n, max_images=m))
        for n, m in [(None, 2), (2, 4)]
    ]
    assert [rows[0]["batch_size"] for rows in sizes] == [2, 2]


def test_a_ceiling_is_a_speed(monkeypatch):
    monkeypatch.setitem(SIZES, "cpu", (64, 128))
    assert 1e8 < matmul_ceiling(torch.float32, CPU) < 1e14


@pytest.mark.parametrize(
    ("output", "report"),
    [
        (
            'epoch 1\n{"accuracy": 0.9402, "seconds": 3.5, "operations": 3.6e14}\n',
            {"accuracy": 0.9402, "seconds": 3.5, "operations": 360_000_000_000_000},
        ),
        (
            '{"accuracy": 1, "seconds": 2, "epochs": 8}',
            {"accuracy": 1.0, "seconds": 2.0, "operations": None},
        ),
    ],
)
def test_another_programs_report_is_its_last_line(output, report):
    assert read_report(output) == report


@pytest.mark.parametrize(
    ("output", "named"),
    [
        ("", "last line"),
        ('{"accuracy": 0.9, "seconds": 1}\ndone', "'done'"),
        ("[0.9, 1]", "last line"),
        ('{"accuracy": 0.9}', "seconds"),
        ('{"accuracy": 94.0, "seconds": 1}', "accuracy must be in"),
        ('{"accuracy": 0.9, "seconds": 0}', "seconds must be above 0"),
        ('{"accuracy": 0.9, "seconds": NaN}', "seconds must be above 0"),
    ],
)
def test_a_report_that_is_none_is_named(output, named):
    with pytest.raises(ValueError, match=named):
        read_report(output)


def test_the_table_has_mean_deviation_number_target_and_ratio():
    ours = [
        {"side": "ours", "run": seed, "target": 0.94, "accuracy": x, "plain_accuracy": x}
        | {"seconds": 10.0, "training_seconds": 9.0, "answering_seconds": 1.0, "operations": 2e14}
        for seed, x in enumerate([0.939, 0.941, 0.943])
    ]
    beside = [
        {"side": "beside", "run": 0, "target": 0.94, "accuracy": 0.94, "seconds": 20.0}
        | {"operations": None}
    ]
    console = Console(width=250)
    with console.capture() as printed:
        console.print(table(ours + beside))
    text = " ".join(printed.get().split())
    assert "94.10 ± 0.20" in text
    assert "ours, n = 3" in text
    assert "reaches the target of 94.00%" in text
    assert "0.5 times the other's mean time" in text
    assert "0.2000 ± 0.0000" in text


def test_what_was_measured_is_on_disk_when_a_later_run_fails(tmp_path, monkeypatch, refusal):
    output = tmp_path / "benchmark.json"
    asked = ["--seeds=2", "--beside=exit 3", f"--output={output}", "--device=cpu"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "time-to-accuracy", *asked])
    monkeypatch.setattr(time_to_accuracy, "train", lambda *_: {"accuracy": 0.9, "seconds": 1.0})
    assert "exit code 3" in refusal(act=benchmark.main)
    (row,) = read_benchmark(output).rows
    assert (row["side"], row["run"], row["accuracy"]) == ("ours", 0, 0.9)
