"""`gpu`: the targets of a GPU, except whole recipes, in one process and one record.

The row of a failed measurement contains its error, and the other rows follow. After `--minutes` no
row begins, and the current row ends after its current repeat; a compilation is not interrupted.

The step in the Trainer uses the unchanged preset, without validation. The other rows are
measured as in `overhead` and in `time-to-accuracy --airbench`, whose target also requires a mean of
94% on CIFAR-10. Without CIFAR-10 the images are synthetic.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from experiments.benchmarks import time_to_accuracy
from experiments.benchmarks.flags import chosen
from experiments.benchmarks.in_trainer import StepWindows, fit
from experiments.benchmarks.overhead import alternate_epochs
from experiments.benchmarks.step import DTYPES, Step, Variant, first_line
from experiments.benchmarks.timing import copy_bandwidth, matmul_ceiling, short
from experiments.console import UserError
from experiments.records.provenance import describe_device
from experiments.training.configuration import resolve_config

SOURCE = "--data.source=auto"
Found = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """One row: its measure, its upper limit, and the function that measures it."""

    measure: str
    unit: str
    most: float
    # Flags and deadline to "repeats", and "value" unless that is their median.
    function: Callable[[argparse.Namespace, float], Found]


def preset(arch: str, asked: int, flags: argparse.Namespace) -> tuple[list[str], Found]:
    """Flags of `run.py` for a preset, and the size of its batches.

    `--max-images` may lower the batch size that the target asks for: the row then misses it.
    """
    size = min(asked, flags.max_images or asked)
    arguments = [
        f"--arch={arch}",
        f"--data.batch_size={size}",
        SOURCE,
        "--data.val_fraction=0",
        f"--trainer.accelerator={flags.device}",
        *flags.run_flags,
    ]
    return arguments, {"batch_size": size, "reached": size == asked}


def step_in_trainer(arch: str, asked: int, flags: argparse.Namespace, deadline: float) -> Found:
    """Milliseconds of a preset's step in the Trainer; a window is a repeat."""
    arguments, batch = preset(arch, asked, flags)
    windows = StepWindows(flags.warm_up, flags.window, flags.repeats, deadline)
    with TemporaryDirectory() as folder:
        cli = fit([*arguments, f"--output={folder}", "--name=step"], windows)
    if not windows.seconds:
        raise UserError(
            f"--warm-up {flags.warm_up} and --window {flags.window} must fit into the training, "
            f"which has {cli.trainer.global_step} steps"
        )
    precision = str(cli.trainer.precision)
    del cli
    release()
    repeats = [1000 * x for x in windows.seconds]
    found: Found = {"repeats": repeats, "precision": precision, **batch}
    try:
        return found | limits(arch, arguments, precision, batch["batch_size"], flags.device)
    except Exception as error:  # the step's time does not depend on it
        return found | {"limits_error": first_line(error)}


def limits(
    arch: str, arguments: list[str], precision: str, batch_size: int, device_type: str
) -> Found:
    """Operations, matrix ceiling and memory floor of a step of the eager network."""
    device = torch.device(device_type)
    variant = Variant(False, precision, "channels_last" if device_type == "cuda" else "contiguous")
    step = Step(arch, resolve_config(arguments)["model"], variant, batch_size, device)
    operations, saved = step.operations(), step.activation_bytes()
    return {
        "operations": operations,
        "ceiling": matmul_ceiling(DTYPES[precision], device),
        "activation_bytes": saved,
        "memory_floor_ms": 1000 * saved / copy_bandwidth(device),
    }


def epoch_over_bare_loop(
    arch: str, asked: int, flags: argparse.Namespace, deadline: float
) -> Found:
    """Median epoch of the Trainer, divided by the bare loop's; a round is a repeat."""
    arguments, batch = preset(arch, asked, flags)
    seconds, bare, precision = alternate_epochs(arguments, flags.repeats, deadline)
    return {
        "repeats": [a / b for a, b in zip(seconds, bare, strict=True)],
        "value": median(seconds) / median(bare),
        "precision": precision,
        **batch,
        "seconds": seconds,
        "bare_seconds": bare,
    }


def time_over_airbench(flags: argparse.Namespace, deadline: float) -> Found:
    """Our median time to 94% over airbench94's; each round is a repeat.

    Both train on all training images.
    """
    if flags.airbench is None:
        raise UserError("--airbench is missing: legacy/airbench94.py of a clone")
    race = argparse.Namespace(
        arch="speed_resnet",
        target=0.94,
        seeds=flags.repeats,
        first_seed=0,
        strategy=flags.strategy,
        airbench=flags.airbench,
        device=flags.device,
        run_flags=[SOURCE, "--data.val_fraction=0", "--trainer.max_steps=325", *flags.run_flags],
    )
    rows = list(time_to_accuracy.run_warm(race, deadline))
    ours, theirs = ([r for r in rows if r["side"] == side] for side in ("ours", "beside"))
    seconds, others = ([r["seconds"] for r in side] for side in (ours, theirs))
    accuracy = mean(r["accuracy"] for r in ours)
    return {
        "repeats": [a / b for a, b in zip(seconds, others, strict=True)],
        "value": median(seconds) / median(others),
        "reached": accuracy >= race.target and ours[0]["source"] == "cifar10",
        "accuracy": accuracy,
        "airbench_accuracy": mean(r["accuracy"] for r in theirs),
        "precision": ours[0]["precision"],
        "source": ours[0]["source"],
        "strategy": flags.strategy,
        "seconds": seconds,
        "training_seconds": [r["training_seconds"] for r in ours],
        "answering_seconds": [r["answering_seconds"] for r in ours],
        "airbench_seconds": others,
    }


def step_target(arch: str, batch_size: int, most: float) -> Target:
    """The target of a preset's step, in milliseconds."""
    measure = f"{arch}, batch {batch_size}: a step in the Trainer"
    return Target(measure, "ms", most, partial(step_in_trainer, arch, batch_size))


#: in the order of measuring: networks that are compiled alike follow each other
TARGETS = {
    "sam_resnet": step_target("sam_resnet", 128, 5.0),
    "overhead": Target(
        "sam_resnet, batch 128: an epoch in the Trainer over the bare loop",
        "ratio",
        1.10,
        partial(epoch_over_bare_loop, "sam_resnet", 128),
    ),
    "airbench": Target(
        "speed_resnet to 94% over legacy/airbench94.py, both warm",
        "ratio",
        1.0,
        time_over_airbench,
    ),
    "champion": step_target("champion", 512, 9.0),
    "enhanced_efficient_resnet": step_target("enhanced_efficient_resnet", 128, 6.5),
}


def measure(flags: argparse.Namespace) -> Iterator[Found]:
    """Measure a row for each target."""
    deadline = time.perf_counter() + 60 * flags.minutes
    for name in chosen("--rows", flags.rows or ",".join(TARGETS), TARGETS):
        row = measure_row(name, flags, deadline)
        print(f"{name}: {in_words(row)}", flush=True)
        yield row


def measure_row(name: str, flags: argparse.Namespace, deadline: float) -> Found:
    """Measure one row; it contains an error if it fails or the time is over."""
    target = TARGETS[name]
    row: Found = {
        "name": name,
        "measure": target.measure,
        "unit": target.unit,
        "target": target.most,
        "device": describe_device(torch.device(flags.device)),
    }
    began = time.perf_counter()
    if began > deadline:
        return row | {"error": f"not begun within {flags.minutes:g} minutes"}
    try:
        found = target.function(flags, deadline)
    except Exception as error:  # of the compiler, of a full memory, or a mistake in a flag
        return row | {"error": first_line(error)}
    finally:
        release()
    repeats = found["repeats"]
    value = found.pop("value", median(repeats))
    met = value <= target.most and found.get("reached", True)
    spread = {"min": min(repeats), "median": median(repeats), "max": max(repeats)}
    took = {"row_seconds": time.perf_counter() - began}
    return row | {"error": None, "value": value, "met": met, **spread, **found, **took}


def release() -> None:
    """Free memory and compiled code; a process keeps few compiled versions."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_words(row: Mapping[str, Any]) -> str:
    if row["error"]:
        return row["error"]
    verdict = "met" if row["met"] else "missed"
    unit = " ms" if row["unit"] == "ms" else ""
    return f"{short(row['value'])}{unit}, target {row['target']:g}{unit}, {verdict}"


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = Table(
        title="Targets on a GPU",
        show_lines=True,
        caption="Value: the median, or the ratio of two medians, with the range over the repeats. "
        "Share: of the best matrix product. Floor: activations over copy bandwidth.",
    )
    shown.add_column("measure", overflow="fold")
    for column in ("value", "target", "met", "share", "floor, ms"):
        shown.add_column(column, justify="right")
    for row in rows:
        if row["error"]:
            shown.add_row(f"{row['measure']}\n[red]failed[/]: {escape(row['error'])}")
            continue
        measure = row["measure"]
        if "accuracy" in row:
            measure += f"\n{row['accuracy']:.2%}, airbench {row['airbench_accuracy']:.2%}"
        shown.add_row(
            measure,
            f"{short(row['value'])} [{short(row['min'])}, {short(row['max'])}]",
            f"<= {row['target']:g}",
            "yes" if row["met"] else "no",
            f"{1000 * row['operations'] / row['value'] / row['ceiling']:.1%}"
            if "ceiling" in row
            else "",
            short(row["memory_floor_ms"]) if "memory_floor_ms" in row else "",
        )
    return shown
