"""`step`: forward pass, backward pass and optimizer step of every preset's network.

A step is what training takes: the module's own `training_step` under Lightning's own autocast, its
loss and metrics, and the preset's optimizer with every parameter trained that is trained at the
beginning. Images and labels are random, lie on the device, and are the same for all variants;
mixing, schedule, clipping, callbacks and loggers are left out.

The variants of an architecture are timed in turns, operations are counted in one real step (a
compiled network's are those of the eager one), and memory is measured in a step of its own: that of
weights, gradients, optimizer state and batch, and the most that a step takes above it.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.ceiling import matmul_ceiling
from experiments.benchmarks.memory import held_bytes, peak_growth, tensors_in
from experiments.benchmarks.timing import Ratio, add_repeats, alternate, positive, ratio
from experiments.training.launch import near
from experiments.training.presets import EXPERIMENTS
from experiments.training.resolve import resolve_config
from lightning_modules import ARCHITECTURES
from lightning_modules.optimizers import make_optimizer

SUMMARY = "Forward pass, backward pass and optimizer step of every architecture, in all variants."
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
FORMATS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Variant:
    """One way of taking the same step."""

    compiled: bool
    precision: str
    memory_format: str


BASELINE = Variant(compiled=False, precision="32-true", memory_format="contiguous")


class Step:
    """One variant of an architecture's training step, taken at each call.

    `hparams` are the module's hyper-parameters, whose `compile` and `channels_last` the variant
    decides.
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
        images = torch.randn(batch_size, 3, 32, 32)
        self.batch = images.to(device), torch.randint(10, (batch_size,)).to(device)
        layout = {"channels_last": variant.memory_format == "channels_last"}
        module = EXPERIMENTS[arch](**{**hparams, **layout, "compile": variant.compiled})
        self.module = module.to(device).train()
        self.optimizer = make_optimizer(self.module.network, self.module.hparams)
        self.mixed = None
        if variant.precision == "bf16-mixed":
            self.mixed = MixedPrecision("bf16-mixed", device.type)

    def __call__(self) -> None:
        with self.mixed.forward_context() if self.mixed else nullcontext():
            loss = self.module.training_step(self.batch, 0)
        # Where Lightning does it: the last step's gradients live through the forward pass.
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def operations(self) -> int:
        """Of one step, a multiply-add counted as two."""
        counter = FlopCounterMode(display=False)
        with torch.compiler.set_stance("force_eager"), counter:
            self()
        return counter.get_total_flops()

    def peak_memory(self) -> int:
        """The most bytes of tensors that training holds at once, after a first step."""
        parameters = list(self.module.parameters())
        state = tensors_in(self.optimizer.state.values())
        gradients = [p.grad for p in parameters if p.grad is not None]
        held = held_bytes([*parameters, *gradients, *self.module.buffers(), *state, *self.batch])
        return held + peak_growth(self, self.batch[0].device)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arch",
        metavar="NAME,NAME",
        help=f"some presets (default: {','.join(ARCHITECTURES)}) of {', '.join(EXPERIMENTS)}",
    )
    parser.add_argument("--compile", choices=("off", "on", "both"), default="both")
    parser.add_argument("--precision", choices=(*DTYPES, "both"), default="both")
    parser.add_argument("--memory-format", choices=(*FORMATS, "both"), default="both")
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=positive,
        help="images of a step (default: the preset's)",
    )
    parser.add_argument(
        "--max-images",
        metavar="N",
        type=positive,
        help="at most so many images a step, for slow machines (default: no limit)",
    )
    add_repeats(parser, default=3)


def chosen_variants(flags: argparse.Namespace) -> list[Variant]:
    """Every combination that the flags ask for, the baseline first where it is among them."""
    compiled = {"off": [False], "on": [True], "both": [False, True]}[flags.compile]
    precisions = list(DTYPES) if flags.precision == "both" else [flags.precision]
    formats = list(FORMATS) if flags.memory_format == "both" else [flags.memory_format]
    return [Variant(*x) for x in product(compiled, precisions, formats)]


def measure(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each variant of each architecture; MisconfigurationException for an unknown one."""
    names = list(ARCHITECTURES) if flags.arch is None else flags.arch.split(",")
    for name in names:
        if name not in EXPERIMENTS:
            raise MisconfigurationException(f"--arch {name} is unknown{near(name, [*EXPERIMENTS])}")
    device = torch.device(flags.device)
    torch.backends.cudnn.benchmark = True  # as the Trainer has it
    variants = chosen_variants(flags)
    ceilings = {x: matmul_ceiling(DTYPES[x], device) for x in {v.precision for v in variants}}
    rows = []
    for name in names:
        rows += compare(name, variants, ceilings, flags)
        print(f"{name}: measured {len(variants)} variants", flush=True)
    return rows


def compare(
    arch: str,
    variants: Iterable[Variant],
    ceilings: Mapping[str, float],
    flags: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Time the variants of one architecture; one that fails has an error in place of figures."""
    config = resolve_config(["--arch", arch])
    batch_size = flags.batch_size or config["data"]["batch_size"]
    batch_size = min(batch_size, flags.max_images or batch_size)
    device = torch.device(flags.device)
    steps: dict[Variant, Step] = {}
    errors: dict[Variant, str] = {}
    memory: dict[Variant, int] = {}
    for variant in variants:
        try:
            step = Step(arch, config["model"], variant, batch_size, device)
            step()
            memory[variant] = step.peak_memory()
            steps[variant] = step
        except Exception as error:  # whatever a compiler, a number format or a full memory raises
            errors[variant] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    operations = next(iter(steps.values())).operations() if steps else None
    timed = alternate({str(v): step for v, step in steps.items()}, flags.repeats, device)
    seconds = {variant: timed[str(variant)] for variant in steps}
    rows = []
    for variant in variants:
        row = {"arch": arch, "batch_size": batch_size, **asdict(variant)}
        if variant in errors:
            rows.append(row | {"error": errors[variant]})
            continue
        assert operations is not None
        per_second = operations / median(seconds[variant])
        gain = ratio(seconds[BASELINE], seconds[variant]) if BASELINE in seconds else None
        rows.append(
            row
            | {
                "error": None,
                "seconds": seconds[variant],
                "images_per_second": batch_size / median(seconds[variant]),
                "speedup": gain and asdict(gain),
                "operations": operations,
                "operations_per_second": per_second,
                "ceiling": ceilings[variant.precision],
                "share_of_ceiling": per_second / ceilings[variant.precision],
                "peak_bytes": memory[variant],
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    ceilings = {row["precision"]: row["ceiling"] for row in rows if not row["error"]}
    words = [f"{name} {ceiling / 1e9:,.0f} GFLOP/s" for name, ceiling in ceilings.items()]
    shown = Table(
        title="Training steps: forward, backward, optimizer",
        caption="Medians, with their range over the rounds. Speed-up: over 32-true, contiguous, "
        f"eager. Share: of the best matrix product here: {', '.join(words) or 'none measured'}.",
    )
    shown.add_column("architecture")
    for column in ("images/s", "step, ms", "speed-up", "GFLOP/s", "share", "peak MB"):
        shown.add_column(column, justify="right")
    last = None
    for row in rows:
        if row["arch"] != last:
            last = row["arch"]
            shown.add_section()
            shown.add_row(f"[bold]{last}[/], batch {row['batch_size']:,}")
        how = "compiled" if row["compiled"] else "eager"
        name = f"  {row['precision']}, {row['memory_format']}, {how}"
        if row["error"]:
            shown.add_row(f"{name}\n  [red]failed[/]: {row['error']}")
            continue
        milliseconds = [1000 * x for x in row["seconds"]]
        shown.add_row(
            name,
            f"{row['images_per_second']:,.0f}",
            f"{median(milliseconds):,.0f} [{min(milliseconds):,.0f}, {max(milliseconds):,.0f}]",
            str(Ratio(**row["speedup"])) if row["speedup"] else "",
            f"{row['operations_per_second'] / 1e9:,.0f}",
            f"{row['share_of_ceiling']:.0%}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
        )
    return shown
