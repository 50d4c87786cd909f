"""`step`: forward pass, backward pass and optimizer step of every preset's network.

A step is the module's `training_step` under Lightning's autocast, with loss and metrics, and a step
of the preset's optimizer. Images and labels are random tensors on the device, equal for all
variants. Mixing, schedule, clipping, callbacks and loggers are not included.

The memory floor is the least time for moving the activations: the bytes that autograd saves for the
backward pass, written once and read once, divided by the device's copy bandwidth. It is computed
for the eager network; a compiled one may save less.

torch's own modes of compilation have CUDA graphs of forward and backward pass only. This project's
`reduce-overhead` and `max-autotune` capture the whole step in one graph.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import product
from statistics import median
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.flags import MEMORY_FORMATS, TORCH_MODES, chosen
from experiments.benchmarks.memory import held_bytes, peak_growth, saved_bytes
from experiments.benchmarks.timing import (
    Ratio,
    alternate,
    copy_bandwidth,
    matmul_ceiling,
    ratio,
    short,
)
from experiments.console import track
from experiments.presets import EXPERIMENTS
from experiments.training.configuration import resolve_config
from experiments.training.machine import synchronise
from lightning_modules import ARCHITECTURES
from lightning_modules.optimizers import make_optimizer

DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
PROFILED = 5  # steps
#: names of CUDA's runtime and driver calls; a replayed graph is one call
LAUNCH = re.compile(r"cu(da)?(Graph)?Launch")


@dataclass(frozen=True)
class Variant:
    """One way of taking the same step."""

    compiled: bool | str  # a string is a mode of `--model.compile`
    precision: str
    memory_format: str


BASELINE = Variant(compiled=False, precision="32-true", memory_format="contiguous")


class Step:
    """One variant of an architecture's training step, taken at each call.

    `hparams` configure the module, but the variant decides on `compile` and `channels_last`.
    """

    def __init__(
        self,
        arch: str,
        hparams: Mapping[str, Any],
        variant: Variant,
        batch_size: int,
        device: torch.device,
    ) -> None:
        torch.manual_seed(0)
        layout = {"channels_last": variant.memory_format == "channels_last"}
        torchs = variant.compiled in TORCH_MODES
        compiled = False if torchs else variant.compiled
        module = EXPERIMENTS[arch](**{**hparams, **layout, "compile": compiled})
        if torchs:
            module.network.compile(mode=str(variant.compiled).removeprefix("torch-"))
        self.module = module.to(device).train()
        labels = torch.randint(module.classes, (batch_size,))
        self.batch = torch.randn(batch_size, 3, 32, 32).to(device), labels.to(device)
        self.module.setup("fit")  # captures the step, if the variant has a graph
        self.optimizer = make_optimizer(self.module.network, self.module.hparams)
        self.mixed = None
        if variant.precision == "bf16-mixed":
            self.mixed = MixedPrecision("bf16-mixed", device.type)

    def forward(self) -> Tensor:
        """The loss of the batch."""
        with self.mixed.forward_context() if self.mixed else nullcontext():
            return self.module.training_step(self.batch, 0)

    def __call__(self) -> None:
        loss = self.forward()
        # As in Lightning, the last step's gradients are kept during the forward pass.
        self.module.optimizer_zero_grad(0, 0, self.optimizer)
        self.module.backward(loss)
        self.optimizer.step()

    def operations(self) -> int:
        """Operations of one step, a multiply-add counted as two."""
        counter = FlopCounterMode(display=False)
        with torch.compiler.set_stance("force_eager"), counter:
            self()
        return counter.get_total_flops()

    def activation_bytes(self) -> int:
        """Bytes that the eager backward pass needs, without weights and images.

        The copies of weights that autocast makes do count.
        """
        kept = [*self.module.parameters(), *self.module.buffers(), *self.batch]
        with torch.compiler.set_stance("force_eager"):
            return saved_bytes(self.forward, kept)

    def peak_memory(self) -> int:
        """The most bytes of tensors that training holds at once, after a first step."""
        parameters = list(self.module.parameters())
        values = (x for state in self.optimizer.state.values() for x in state.values())
        state = [x for x in values if isinstance(x, Tensor)]
        gradients = [p.grad for p in parameters if p.grad is not None]
        held = held_bytes([*parameters, *gradients, *self.module.buffers(), *state, *self.batch])
        return held + peak_growth(self, self.batch[0].device)


def profile_steps(step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Launches, kernels and milliseconds of the host, each of one step.

    A replayed CUDA graph is one launch of many kernels. Copies and fills are no kernels.
    """
    step()
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    synchronise(device)
    with profile(activities=activities) as profiler:
        for _ in range(PROFILED):
            with record_function(profile_steps.__name__):
                step()
            synchronise(device)
    launches = kernels = microseconds = 0.0
    for event in profiler.events() or ():
        if event.device_type == DeviceType.CPU:
            launches += LAUNCH.match(event.name) is not None
            if event.name == profile_steps.__name__:
                microseconds += event.cpu_time_total
        elif not event.is_user_annotation and not event.name.startswith(("Memcpy", "Memset")):
            kernels += 1
    return {
        "launches": launches / PROFILED,
        "kernels": kernels / PROFILED,
        "host_ms": microseconds / PROFILED / 1000,
    }


def chosen_variants(flags: argparse.Namespace) -> list[Variant]:
    """All combinations of the flags; the baseline comes first if it is among them."""
    modes: dict[str, list[bool | str]] = {"off": [False], "on": [True], "both": [False, True]}
    compiled = [x for mode in flags.compile.split(",") for x in modes.get(mode, [mode])]
    precisions = list(DTYPES) if flags.precision == "both" else [flags.precision]
    formats = list(MEMORY_FORMATS) if flags.memory_format == "both" else [flags.memory_format]
    return [Variant(*x) for x in product(compiled, precisions, formats)]


def measure(flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure each variant of each architecture; UserError for an unknown name."""
    names = chosen("--arch", flags.arch or ",".join(ARCHITECTURES), EXPERIMENTS)
    device = torch.device(flags.device)
    torch.backends.cudnn.benchmark = True  # as in the Trainer
    variants = chosen_variants(flags)
    for mode in {v.compiled for v in variants if isinstance(v.compiled, str)} - {*TORCH_MODES}:
        for name in names:
            resolve_config([f"--arch={name}", f"--model.compile={mode}"])  # rejects an unknown mode
    ceilings = {x: matmul_ceiling(DTYPES[x], device) for x in {v.precision for v in variants}}
    bandwidth = copy_bandwidth(device)
    for name in names:
        yield from compare(name, variants, ceilings, bandwidth, flags)
        print(f"{name}: measured {len(variants)} variants", flush=True)


def compare(
    arch: str,
    variants: Sequence[Variant],
    ceilings: Mapping[str, float],
    bandwidth: float,
    flags: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Time an architecture's variants; the row of a failed variant has its error."""
    config = resolve_config(["--arch", arch])
    batch_size = flags.batch_size or config["data"]["batch_size"]
    batch_size = min(batch_size, flags.max_images or batch_size)
    device = torch.device(flags.device)
    steps: dict[Variant, Step] = {}
    errors: dict[Variant, str] = {}
    memory: dict[Variant, tuple[int, int]] = {}  # peak, activations
    operations = 0
    for variant in track(variants, f"{arch}: warm-up", len(variants)):
        try:
            step = eager = Step(arch, config["model"], variant, batch_size, device)
            step()
            peak = step.peak_memory()
            if isinstance(variant.compiled, str):  # a replayed graph shows no operations
                uncompiled = replace(variant, compiled=False)
                eager = Step(arch, config["model"], uncompiled, batch_size, device)
            memory[variant] = peak, eager.activation_bytes()
            operations = operations or eager.operations()
            steps[variant] = step
        except Exception as error:  # of a compiler, a precision or full memory
            errors[variant] = first_line(error)
    timed = alternate({str(v): step for v, step in steps.items()}, flags.repeats, device)
    seconds = {variant: timed[str(variant)] for variant in steps}
    rows = []
    for variant in variants:
        row = {"arch": arch, "batch_size": batch_size, **asdict(variant)}
        rows.append(row | {"error": errors.get(variant)})
        if variant in errors:
            continue
        peak, activations = memory[variant]
        per_second = operations / median(seconds[variant])
        gain = ratio(seconds[BASELINE], seconds[variant]) if BASELINE in seconds else None
        rows[-1] |= {
            "seconds": seconds[variant],
            "images_per_second": batch_size / median(seconds[variant]),
            "speedup": gain and asdict(gain),
            "operations": operations,
            "operations_per_second": per_second,
            "ceiling": ceilings[variant.precision],
            "share_of_ceiling": per_second / ceilings[variant.precision],
            "peak_bytes": peak,
            "activation_bytes": activations,
            "copy_bandwidth": bandwidth,
            "memory_floor_seconds": activations / bandwidth,
            **(profile_steps(steps[variant], device) if flags.profile else {}),
        }
    return rows


def first_line(error: BaseException) -> str:
    """The kind of an error, and its first line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    ceilings = {row["precision"]: row["ceiling"] for row in rows if not row["error"]}
    words = [f"{name} {ceiling / 1e9:,.0f} GFLOP/s" for name, ceiling in ceilings.items()]
    profiled = any("host_ms" in row for row in rows)
    host = " Host: ms until it has issued the step, under torch.profiler." if profiled else ""
    bandwidth = next((f"{r['copy_bandwidth'] / 1e9:,.0f} GB" for r in rows if not r["error"]), "-")
    shown = Table(
        title="Training steps: forward, backward, optimizer",
        pad_edge=False,
        caption="Medians, with their range over the rounds. Speed-up: over 32-true, contiguous, "
        f"eager. Share: of the best matrix product here: {', '.join(words) or 'none measured'}. "
        f"Floor: activations over {bandwidth} copied a second.{host}",
    )
    shown.add_column("architecture", overflow="fold")
    columns = ["images/s\npeak MB", "step, ms", "speed-up", "share\nfloor, ms"]
    for column in [*columns, *(["launches\nhost, ms"] if profiled else [])]:
        shown.add_column(column, justify="right")
    last = None
    for row in rows:
        if row["arch"] != last:
            last = row["arch"]
            shown.add_section()
            shown.add_row(f"[bold]{last}[/]\nbatch {row['batch_size']:,}")
        how = {False: "eager", True: "compiled"}.get(row["compiled"], row["compiled"])
        name = f"{row['precision']}, {how}\n{row['memory_format']}"
        if row["error"]:
            shown.add_row(f"{name}\n[red]failed[/]: {escape(row['error'])}")
            continue
        low, middle, high = (1000 * f(row["seconds"]) for f in (min, median, max))
        speedup = str(Ratio(**row["speedup"])) if row["speedup"] else ""
        shown.add_row(
            name,
            f"{row['images_per_second']:,.0f}\n{row['peak_bytes'] / 1e6:,.0f}",
            f"{short(middle)}\n[{short(low)}, {short(high)}]",
            speedup.replace(" ", "\n", 1),
            f"{row['share_of_ceiling']:.0%}\n{short(1000 * row['memory_floor_seconds'])}",
            *([f"{row['launches']:,.0f}\n{short(row['host_ms'])}"] if profiled else []),
        )
    return shown
