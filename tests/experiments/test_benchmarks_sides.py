"""The sides of a benchmark do the same work, and a failed side is reported."""

import argparse
import contextlib
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from rich.console import Console
from torch import nn
from torch.autograd import DeviceType

import datamodules.cifar10
from callbacks import EMA
from experiments import benchmark
from experiments.benchmarks import gpu, in_trainer, overhead, time_to_accuracy
from experiments.benchmarks import step as steps
from experiments.benchmarks.in_trainer import StepWindows, fit
from experiments.benchmarks.memory import saved_bytes
from experiments.benchmarks.overhead import bare_epoch
from experiments.benchmarks.step import BASELINE, Step, Variant, chosen_variants, compare
from experiments.benchmarks.time_to_accuracy import read_report, table
from experiments.benchmarks.timing import COPIED, SIZES, copy_bandwidth, matmul_ceiling
from experiments.console import UserError
from experiments.records.record import read_benchmark

CPU = torch.device("cpu")
CONSTANT_RATE = (
    "--model.schedule=triangular",
    "--model.rising=0",
    "--model.triangle=[1,1]",
)
SMALL = {"base_width": 4, "blocks": (1, 1, 1)}


def flags(**values):
    asked = {"compile": "both", "precision": "both", "memory_format": "both", "repeats": 1}
    size = {"batch_size": 2, "max_images": None, "device": "cpu", "profile": False}
    return argparse.Namespace(**asked | size | values)


class Bare(Callback):
    """Trains the first epoch in the bare loop, then stops the Trainer."""

    def on_train_epoch_start(self, trainer, pl_module):
        steps = int(trainer.num_training_batches)
        assert bare_epoch(trainer, pl_module, steps) > 0
        self.state = state_of(trainer, pl_module)
        raise KeyboardInterrupt


class Trained(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        self.state = state_of(trainer, pl_module)


def state_of(trainer, module):
    """Copies of all tensors that a step changes, without the schedule."""
    (optimizer,) = trainer.optimizers
    (ema,) = (c for c in trainer.callbacks if isinstance(c, EMA))
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    tensors = [*module.network.state_dict().values(), *ema.network.state_dict().values(), *momenta]
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("recipe", [(), ("--model.sharpness=sam",)], ids=["sgd", "sam"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_trainer_and_bare_loop_take_the_same_steps(
    tiny, precision, recipe, few_images, monkeypatch
):
    """Equal bit for bit. The rate is constant, because only the Trainer has a schedule."""
    monkeypatch.setattr(datamodules.cifar10, "synthetic_cifar10", few_images)
    sides = Trained(), Bare()
    for side in sides:
        arguments = tiny(
            *CONSTANT_RATE,
            *recipe,
            f"--trainer.precision={precision}",
            "--data.val_fraction=0",
            "--trainer.max_epochs=1",
            "--lookahead.k=2",
            "--trainer.gradient_clip_val=0.01",
        )
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            cli = fit(arguments, side)
            assert cli.trainer.gradient_clip_val == 0.01
    assert len(sides[0].state) == len(sides[1].state) > 10
    assert all(torch.equal(*pair) for pair in zip(*(side.state for side in sides), strict=True))


def test_epochs_alternate_and_the_first_round_does_not_count(tiny, few_images, monkeypatch):
    monkeypatch.setattr(datamodules.cifar10, "synthetic_cifar10", few_images)
    steps = []
    take = overhead.bare_epoch
    monkeypatch.setattr(
        overhead, "bare_epoch", lambda *a: steps.append(a[2]) or (a[0].global_step, take(*a))[0]
    )
    seconds, bare, precision = overhead.alternate_epochs(
        [x for x in tiny() if not x.startswith(("--output", "--name"))], repeats=2
    )
    assert steps == [2, 3, 3]
    assert bare == [6, 9]  # after two epochs of the Trainer, and after three
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert precision == "32-true"


def test_after_the_deadline_no_round_follows_the_first(tiny, few_images, monkeypatch):
    monkeypatch.setattr(datamodules.cifar10, "synthetic_cifar10", few_images)
    arguments = [x for x in tiny() if not x.startswith(("--output", "--name"))]
    seconds, bare, _ = overhead.alternate_epochs(arguments, repeats=5, deadline=0)
    assert len(seconds) == len(bare) == 1


def windows_of(tiny, windows, batches, *flags):
    """Train with these windows; return the steps at each reading of the clock, and all steps."""
    readings = []
    steps = Steps()

    def clock(device):
        readings.append(steps.done)
        return float(steps.done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_trainer, "now", clock)
        limit = f"--trainer.limit_train_batches={batches}"
        cli = fit(
            tiny("--data.val_fraction=0", limit, "--trainer.max_epochs=9", *flags), steps, windows
        )
    return readings, cli.trainer.global_step


class Steps(Callback):
    done = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.done += 1


def test_windows_are_of_whole_steps_within_an_epoch_after_the_warm_up(
    tiny, few_images, monkeypatch
):
    monkeypatch.setattr(datamodules.cifar10, "synthetic_cifar10", few_images)
    windows = StepWindows(warm_up=4, length=2, count=3)
    readings, steps = windows_of(tiny, windows, 6)
    # Window 1 is steps 4 to 6, the end of the epoch. Windows 2 and 3 are steps 7 to 9 and 9 to 11.
    assert readings == [4, 6, 7, 9, 11]
    assert windows.seconds == [1.0] * 3  # the clock counts steps
    assert steps == 11


def test_a_window_is_as_short_as_an_epoch_needs(tiny, few_images, monkeypatch):
    monkeypatch.setattr(datamodules.cifar10, "synthetic_cifar10", few_images)
    windows = StepWindows(warm_up=1, length=100, count=2)
    readings, steps = windows_of(tiny, windows, 4)
    assert readings == [1, 4, 5, 8]
    assert windows.seconds == [1.0] * 2
    assert steps == 8


def test_after_the_deadline_no_window_follows_the_first(tiny, few_images, monkeypatch):
    monkeypatch.setattr(datamodules.cifar10, "synthetic_cifar10", few_images)
    windows = StepWindows(warm_up=1, length=1, count=9, deadline=0)
    assert windows_of(tiny, windows, 4)[1] == 2
    assert len(windows.seconds) == 1


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
    activations = large - small  # the activations of two images
    assert small == pytest.approx(3 * parameters + activations, rel=0.3)


def test_a_failed_variant_is_a_row_with_its_error(monkeypatch):
    monkeypatch.setattr(steps, "Step", lambda arch, hparams, *rest: Step(arch, SMALL, *rest))
    variants = [BASELINE, Variant(True, "32-true", "contiguous")]
    with torch.compiler.set_stance("fail_on_recompile"):
        rows = compare("sam_resnet", variants, {"32-true": 1e9}, 1e9, flags())
    eager, compiled = rows
    assert eager["error"] is None
    assert eager["images_per_second"] > 0
    assert eager["speedup"]["median"] == 1
    assert eager["memory_floor_seconds"] == eager["activation_bytes"] / 1e9 > 0
    assert compiled["error"].startswith("RuntimeError: ")
    console = Console(width=200)
    with console.capture() as printed:
        console.print(steps.table(rows))
    assert "RuntimeError" in printed.get()


def test_a_captured_steps_operations_and_activations_are_the_eager_ones(monkeypatch):
    made = []

    def small(arch, hparams, variant, *rest):
        made.append(variant)
        return Step(arch, SMALL, replace(variant, compiled=False), *rest)

    monkeypatch.setattr(steps, "Step", small)
    captured = replace(BASELINE, compiled="reduce-overhead")
    rows = compare("sam_resnet", [captured, BASELINE], {"32-true": 1e9}, 1e9, flags())
    assert made == [captured, BASELINE, BASELINE]
    assert rows[0]["compiled"] == "reduce-overhead"
    for figure in ("operations", "activation_bytes"):
        assert rows[0][figure] == rows[1][figure] > 0


def test_a_limit_on_images_lowers_the_presets_batch_and_never_raises_it(monkeypatch):
    monkeypatch.setattr(steps, "Step", lambda arch, hparams, *rest: Step(arch, SMALL, *rest))
    sizes = [
        compare("sam_resnet", [BASELINE], {"32-true": 1e9}, 1e9, flags(batch_size=n, max_images=m))
        for n, m in [(None, 2), (2, 4)]
    ]
    assert [rows[0]["batch_size"] for rows in sizes] == [2, 2]


def test_a_ceiling_is_a_speed(monkeypatch):
    monkeypatch.setitem(SIZES, "cpu", (64, 128))
    assert 1e8 < matmul_ceiling(torch.float32, CPU) < 1e14


def test_a_bandwidth_is_a_speed(monkeypatch):
    monkeypatch.setitem(COPIED, "cpu", 2**20)
    assert 1e7 < copy_bandwidth(CPU) < 1e14


def test_saved_bytes_count_each_storage_of_the_backward_pass_once():
    weight = torch.randn(8, 4, requires_grad=True)
    images = torch.randn(16, 4)

    def forward():
        return (images @ weight.T).exp().square().sum()

    # exp saves its result, and square saves its input: the same 16 x 8 floats, counted once.
    assert saved_bytes(forward, [weight, images]) == 4 * 16 * 8
    assert saved_bytes(forward, [weight]) == 4 * (16 * 8 + 16 * 4)


def test_a_profile_counts_launches_kernels_and_the_hosts_time(monkeypatch):
    calls = []

    def event(name, device, time=0.0, annotation=False):
        return SimpleNamespace(
            name=name, device_type=device, cpu_time_total=time, is_user_annotation=annotation
        )

    host, chip = DeviceType.CPU, DeviceType.CUDA
    step = [
        event("profile_steps", host, 2000.0, annotation=True),
        *(event(name, host) for name in ("aten::add", "cudaLaunchKernel", "cuLaunchKernelEx")),
        *(event(name, host) for name in ("cudaGraphLaunch", "cudaMemcpyAsync")),
        *(event(name, chip) for name in ("gemm", "add", "Memcpy DtoD (Device -> Device)")),
        event("profile_steps", chip, annotation=True),
    ]
    profiler = SimpleNamespace(events=lambda: step * steps.PROFILED)
    monkeypatch.setattr(steps, "profile", lambda **_: contextlib.nullcontext(profiler))
    found = steps.profile_steps(lambda: calls.append(1), CPU)
    assert found == {"launches": 3, "kernels": 2, "host_ms": 2}
    assert len(calls) == 1 + steps.PROFILED


def test_a_cpu_launches_nothing_and_its_host_computes():
    step = Step("sam_resnet", SMALL, BASELINE, 2, CPU)
    found = steps.profile_steps(step, CPU)
    assert found["launches"] == found["kernels"] == 0
    assert found["host_ms"] > 1


def gpu_flags(tmp_path, **values):
    asked = {"rows": None, "minutes": 1, "device": "cpu", "output": tmp_path / "gpu.json"}
    return argparse.Namespace(kind="gpu", **asked | values)


def targets(**functions):
    return {name: gpu.Target(name, "ms", 5.0, function) for name, function in functions.items()}


def test_a_failed_row_leaves_the_others_and_each_is_written_at_once(tmp_path, monkeypatch, capsys):
    output = tmp_path / "gpu.json"
    written = []

    def measured(*_):
        return {"repeats": [7.0, 4.0, 5.0], "precision": "bf16-mixed"}

    def fails(flags, deadline):
        written.append(len(read_benchmark(flags.output).rows))
        raise UserError("--beside: not a file")

    def misses(flags, deadline):
        written.append(len(read_benchmark(flags.output).rows))
        return {"repeats": [1.0], "value": 2.0, "reached": False}

    monkeypatch.setattr(gpu, "TARGETS", targets(a=measured, b=fails, c=misses))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "gpu", f"--output={output}", "--device=cpu"])
    benchmark.main()
    assert written == [1, 2]
    rows = read_benchmark(output).rows
    first, second, third = rows
    figures = {key: first[key] for key in ("value", "min", "median", "max", "met", "target")}
    assert figures == {"value": 5, "min": 4, "median": 5, "max": 7, "met": True, "target": 5}
    assert second["error"] == "UserError: --beside: not a file"
    assert (third["value"], third["met"]) == (2.0, False)
    printed = capsys.readouterr().out
    assert "5 [4, 7]" in printed
    assert "UserError" in printed


@pytest.mark.parametrize(("images", "met"), [(None, True), (128, True), (64, False)])
def test_a_smaller_batch_does_not_meet_a_target(images, met, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "alternate_epochs", lambda *_: ([1.0], [1.0], "bf16-mixed"))
    asked = gpu_flags(tmp_path, max_images=images, repeats=1, run_flags=[])
    row = gpu.measure_row("overhead", asked, float("inf"))
    assert (row["value"], row["met"]) == (1, met)


def test_no_row_begins_after_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "TARGETS", targets(a=lambda *_: pytest.fail("measured")))
    (row,) = gpu.measure(gpu_flags(tmp_path, minutes=-1))
    assert row["error"] == "not begun within -1 minutes"


@pytest.mark.parametrize(
    ("ours", "accuracy", "source", "met"),
    [
        (1.0, 0.94, "cifar10", True),
        (1.0, 0.9399, "cifar10", False),
        (2.1, 0.95, "cifar10", False),
        (1.0, 0.95, "synthetic", False),
    ],
)
def test_the_race_needs_time_and_accuracy(ours, accuracy, source, met, tmp_path, monkeypatch):
    def rows(flags, deadline):
        for run in range(3):
            side = {"accuracy": accuracy, "training_seconds": 1.0, "answering_seconds": 0.1}
            about = {"precision": "bf16-mixed", "source": source}
            yield {"side": "ours", "run": run, "seconds": ours, **side, **about}
            yield {"side": "beside", "run": run, "seconds": 2.0, "accuracy": 0.94}

    monkeypatch.setattr(time_to_accuracy, "run_warm", rows)
    asked = {"airbench": tmp_path, "repeats": 3, "strategy": "adaptive", "run_flags": []}
    row = gpu.measure_row("airbench", gpu_flags(tmp_path, **asked), float("inf"))
    assert row["error"] is None
    assert row["value"] == ours / 2
    assert row["met"] == met


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
def test_a_malformed_report_is_named(output, named):
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
    assert "94.10" in text
    assert "± 0.20" in text
    assert "ours, n = 3" in text
    assert "reaches the target of 94.00%" in text
    assert "0.5 times the other's mean time" in text
    assert "0.2000" in text


def test_a_failed_run_keeps_the_earlier_measurements_on_disk(tmp_path, monkeypatch, refusal):
    output = tmp_path / "benchmark.json"
    asked = ["--seeds=2", "--beside=exit 3", f"--output={output}", "--device=cpu"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "time-to-accuracy", *asked])
    monkeypatch.setattr(time_to_accuracy, "train", lambda *_: {"accuracy": 0.9, "seconds": 1.0})
    assert "exit code 3" in refusal(act=benchmark.main)
    (row,) = read_benchmark(output).rows
    assert (row["side"], row["run"], row["accuracy"]) == ("ours", 0, 0.9)
