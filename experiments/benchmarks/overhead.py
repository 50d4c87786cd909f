"""`overhead`: an epoch under the Trainer as `run.py` sets it up, over the same in a bare loop.

The Trainer's side is everything that `run.py` has for a preset: its callbacks (checkpoints and
progress bar among them), CSV and W&B loggers, schedule, metrics. Its clock is that behind a
record's `training_seconds`: from the start of training to its end, the checkpoint at the epoch's
end inside, building and setting up not. There is no validation, which is no part of either side.

The bare side takes the same network, optimizer, clipping, autocast and batches, made of the same
flags, and nothing else. What a preset's callbacks compute, EMA and Lookahead, counts as overhead.
"""

import argparse
import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.table import Table

from experiments.benchmarks.timing import Ratio, add_repeats, positive, ratio
from experiments.training.cli import ExperimentCLI
from experiments.training.devices import synchronise
from experiments.training.launch import read_launch
from experiments.training.length import batches_per_epoch
from experiments.training.presets import EXPERIMENTS
from experiments.training.resolve import resolve_config
from lightning_modules.optimizers import make_optimizer
from lightning_modules.speed_resnet import SpeedResNetClassifier

SUMMARY = "One epoch under the Trainer with all its callbacks and loggers, over a bare loop."
WARM_UP = 2  # steps of each side before the first round
# What the bare loop does not do, and the values of which it need not.
BEYOND_THE_LOOP: dict[str, dict[str, tuple[Any, ...]]] = {
    "trainer": {
        "accumulate_grad_batches": (1,),
        "gradient_clip_algorithm": (None, "norm"),
        "precision": ("32-true", "bf16-mixed"),
    },
    "model": {"sharpness": ("none",), "jsd_weight": (0.0,)},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arch",
        choices=list(EXPERIMENTS),
        metavar="NAME",
        default="speed_resnet",
        help="a preset (default: %(default)s)",
    )
    parser.add_argument("--batch-size", metavar="N", type=positive, default=1024)
    parser.add_argument(
        "--steps",
        metavar="N",
        type=positive,
        default=48,
        help="of the epoch, the last of which the loggers write down (default: 48, all of them)",
    )
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="bf16-mixed")
    add_repeats(parser, default=3)
    parser.add_argument(
        "run_flags", metavar="FLAGS", nargs="*", help="behind --: flags of run.py, for both sides"
    )


def measure(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """One row; the sides take turns at going first, after a short warm-up of both.

    MisconfigurationException for a flag of `run.py` that only the Trainer's side would follow, and
    for more steps than an epoch has.
    """
    config = resolve_config(arguments_of(flags, flags.steps))
    if (batches := batches_per_epoch(config)) < flags.steps:
        raise MisconfigurationException(
            f"--steps must be at most {batches}, the batches of an epoch, got {flags.steps}"
        )
    for group, settings in BEYOND_THE_LOOP.items():
        for name, same in settings.items():
            if config[group][name] not in same:
                raise MisconfigurationException(
                    f"--{group}.{name} must be {' or '.join(map(str, same))}, as in the bare loop, "
                    f"got {config[group][name]}"
                )
    sides = {"trainer": trainer_seconds, "bare": bare_seconds}
    # W&B's own process would be one more beside the bare loop.
    only = {"trainer": [], "bare": ["--wandb=disabled"]}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with TemporaryDirectory() as folder:
        for turn in range(-1, flags.repeats):
            steps = flags.steps if turn >= 0 else min(WARM_UP, flags.steps)
            for name in list(sides) if turn % 2 == 0 else reversed(sides):
                place = [f"--output={folder}", f"--name={name}{turn}"]
                arguments = [*arguments_of(flags, steps), *place, *only[name]]
                taken = sides[name](ExperimentCLI(read_launch(arguments)))
                gc.collect()
                if turn >= 0:
                    seconds[name].append(taken)
    return [
        {
            "arch": flags.arch,
            "batch_size": flags.batch_size,
            "precision": flags.precision,
            "steps": flags.steps,
            "seconds": seconds["trainer"],
            "bare_seconds": seconds["bare"],
            "ratio": asdict(ratio(seconds["trainer"], seconds["bare"])),
        }
    ]


def arguments_of(flags: argparse.Namespace, steps: int) -> list[str]:
    """Those of `run.py` for one epoch of `steps` batches, without validation."""
    # SpeedResNet's first bias is frozen on the way, which the bare loop does not know of.
    freezes = EXPERIMENTS[flags.arch] is SpeedResNetClassifier
    always = ["--model.whitening_bias=1"] if freezes else []
    return [
        f"--arch={flags.arch}",
        f"--data.batch_size={flags.batch_size}",
        "--data.val_fraction=0",
        "--trainer.max_epochs=1",
        "--trainer.max_steps=-1",
        f"--trainer.limit_train_batches={steps}",
        f"--trainer.log_every_n_steps={steps}",
        f"--trainer.precision={flags.precision}",
        f"--trainer.accelerator={flags.device}",
        *always,
        *flags.run_flags,
    ]


def trainer_seconds(cli: ExperimentCLI) -> float:
    """The time that an experiment trains, as its record would state it."""
    try:
        cli.trainer.fit(cli.model, cli.datamodule)
    finally:
        for logger in cli.trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
    (timer,) = (x for x in cli.trainer.callbacks if isinstance(x, Timer))
    assert (cli.launch.folder / "last.ckpt").exists()
    return timer.time_elapsed("train")


def bare_seconds(cli: ExperimentCLI) -> float:
    """The time of a plain loop over an experiment's batches."""
    trainer, module, data = cli.trainer, cli.model, cli.datamodule
    device = trainer.strategy.root_device
    # As `fit` would set them.
    trainer.datamodule = data  # type: ignore[attr-defined]
    data.trainer, module.trainer = trainer, trainer
    data.prepare_data()
    data.setup("fit")
    module.to(device).train()
    module.on_fit_start()
    optimizer = make_optimizer(module.network, module.hparams)
    loader, steps = data.train_dataloader(), cli.config.trainer.limit_train_batches
    clip = trainer.gradient_clip_val
    synchronise(device)
    start = time.perf_counter()
    for images, targets in islice(loader, steps):
        with trainer.precision_plugin.forward_context():
            loss = module.loss(module(images), targets)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    synchronise(device)
    return time.perf_counter() - start


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    (row,) = rows
    shown = Table(
        title=f"An epoch of {row['steps']} steps: {row['arch']}, batch {row['batch_size']:,}, "
        f"{row['precision']}",
        caption="Medians; the ratio is theirs, with its range over the rounds. The Trainer's side "
        "has its checkpoint inside; neither validates.",
    )
    shown.add_column("side")
    for column in ("seconds", "ms a step", "ratio"):
        shown.add_column(column, justify="right")
    for name, key in (("Trainer", "seconds"), ("bare loop", "bare_seconds")):
        taken = median(row[key])
        times = str(Ratio(**row["ratio"])) if key == "seconds" else ""
        shown.add_row(name, f"{taken:.3g}", f"{1000 * taken / row['steps']:,.1f}", times)
    return shown
