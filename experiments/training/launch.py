"""What is decided before torch is imported: the architecture, the run folder, what to resume."""

import argparse
import os
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import yaml

from experiments.console import ArgumentParser, UserError, near
from experiments.presets import EXPERIMENTS
from experiments.training.processes import (
    agree_on_a_name,
    handed_on,
    is_first,
)
from experiments.training.run_folder import is_locked, lock_folder, make_folder
from experiments.training.short_help import short_help

IN_USE = "{} is in use: choose another --name, or wait until the process that works on it has ended"


@dataclass(frozen=True)
class Launch:
    """One start of `run.py`."""

    arch: str
    folder: Path  # where everything of the run is written
    checkpoint: Path | None  # what is resumed
    quick: bool  # a small network for a short time
    arguments: list[str]  # for the full parser: what the user gave, behind what it stands on
    made_up: bool = False  # the folder's name: where it is taken, another one does as well

    @property
    def resumes(self) -> bool:
        """Whether an earlier launch began this very run."""
        return self.checkpoint is not None and self.checkpoint.parent == self.folder


def agents_run_id() -> str | None:
    """The id that the agent of a W&B sweep has given to the run that it starts; None without one.

    It is in the folder's name as well: several agents of a machine may start runs at one time.
    """
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def read_flags(argv: list[str]) -> argparse.Namespace:
    """The few flags that everything else depends on, also where a `--config` gives them.

    A mistake in them ends the process.
    """
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--arch")
    parser.add_argument("-c", "--config", type=Path, action="append", default=[])
    parser.add_argument("--name")
    parser.add_argument("--output", type=Path, default=Path("runs"))
    parser.add_argument("--ckpt_path")
    parser.add_argument("--quick", action="store_true")
    settings: dict[str, Any] = {}
    for path in parser.parse_known_args(argv)[0].config:
        try:
            content = _read_config(path)
        except ValueError as error:
            raise UserError(f"--config {error}") from None
        if path.with_name("commands.txt").exists():
            # A run's own file: these two are about that run, and whoever repeats it makes another.
            for name in ("name", "ckpt_path"):
                content.pop(name, None)
        settings |= content
    given = ("arch", "name", "output", "ckpt_path")
    parser.set_defaults(**{x: str(settings[x]) for x in given if settings.get(x) is not None})
    parser.set_defaults(quick=settings.get("quick") is True)
    return parser.parse_known_args(argv)[0]


def read_launch(argv: list[str]) -> Launch:
    """What a command line asks for, as far as it decides the rest; a mistake ends the process."""
    flags = read_flags(argv)
    known = list(EXPERIMENTS)
    if flags.arch is None:
        if {"-h", "--help"} & set(argv):
            print(f"usage: run.py --arch NAME [flags]\n\nNAME: {', '.join(known)}")
            print("The flags of one architecture: run.py --arch NAME --help")
            sys.exit(0)
        raise UserError(f"--arch is missing: name one of {', '.join(known)}")
    if flags.arch not in known:
        hint = near(flags.arch, known)
        raise UserError(f"--arch {flags.arch} is unknown{hint}: name one of {', '.join(known)}")
    for flag in {"-h", "--help"} & set(argv):
        if argv[argv.index(flag) + 1 :][:1] != ["all"]:
            print(short_help(flags.arch))
            sys.exit(0)
        argv = ["--help"]
    if flags.name and (Path(flags.name).name != flags.name or flags.name == ".."):
        raise UserError(
            f"--name must be a folder name without a path, such as first_try, got {flags.name}"
        )
    if not flags.name and not agree_on_a_name():
        raise UserError(
            "--name is missing: all processes of torchrun, SLURM or many nodes need the same"
        )
    try:
        launch = _resume_last(flags, argv) if flags.ckpt_path == "last" else _begin(flags, argv)
        if is_first() and not launch.made_up and is_locked(launch.folder):
            raise UserError(IN_USE.format(launch.folder))
    except OSError as error:
        raise UserError(f"--output {flags.output} cannot be used: {error}") from None
    return launch


def claim_folder(launch: Launch) -> tuple[Launch, TextIO]:
    """Make the run's folder, and lock it until the returned file is closed.

    Of a run's processes the first one alone does. A folder that cannot be written or that another
    process works on ends the process.
    """
    try:
        folder = make_folder(launch.folder, launch.made_up)
        lock = lock_folder(folder)
        if lock is None:
            raise UserError(IN_USE.format(folder))
        if not launch.resumes:
            # Left by a launch that ended before its first checkpoint, and none of this run's.
            for name in ("commands.txt", "wandb_id.txt"):
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--output {launch.folder.parent} cannot be used: {error}") from None
    return replace(launch, folder=folder), lock


def _decided_folder(flags: argparse.Namespace) -> Path | None:
    return handed_on() or (flags.output / flags.name if flags.name else None)


def _resume_last(flags: argparse.Namespace, argv: list[str]) -> Launch:
    """Go on with a run: the one that is named, or the latest."""
    folder = _decided_folder(flags) or _latest_run(flags.output, flags.arch)
    checkpoint = folder / "last.ckpt"
    if not checkpoint.exists():
        raise UserError(f"--ckpt_path last: there is no {checkpoint} to resume from")
    if (folder / "result.json").exists():
        raise UserError(f"--ckpt_path last: {folder} has finished; its record is result.json there")
    # The run goes on with what it was started with; flags given now stand above that.
    arguments = ["--config", str(folder / "config.yaml"), *argv]
    return Launch(flags.arch, folder, checkpoint, flags.quick, arguments)


def _begin(flags: argparse.Namespace, argv: list[str]) -> Launch:
    """Begin a run, from a checkpoint if there is one."""
    checkpoint = Path(flags.ckpt_path) if flags.ckpt_path else None
    # Not Path's, which raises where a folder on the way must not be entered.
    if checkpoint and not os.path.isfile(checkpoint):
        raise UserError(f"--ckpt_path {checkpoint} is not a file")
    folder, identity = _decided_folder(flags), agents_run_id()
    made_up = folder is None and identity is None
    if folder is None:
        folder = flags.output / f"{flags.arch}-{identity or f'{datetime.now():%Y%m%d-%H%M%S}'}"
    if not made_up and any((folder / name).exists() for name in ("last.ckpt", "result.json")):
        raise UserError(f"{folder} contains a run: choose another --name, or add --ckpt_path last")
    return Launch(flags.arch, folder, checkpoint, flags.quick, list(argv), made_up)


def _read_config(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; ValueError, which names it, where it has none."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must be a mapping as --print_config writes it, got {content!r:.40}"
        )
    return content


def _is_of(arch: str, folder: Path) -> bool:
    """Whether a run is of an architecture; one whose config.yaml is none is of no architecture."""
    try:
        return _read_config(folder / "config.yaml").get("arch") == arch
    except ValueError:
        return False


def _latest_run(output: Path, arch: str) -> Path:
    """The run of an architecture that is unfinished, that no process works on, and whose checkpoint
    is the newest.
    """
    unfinished = [
        path.parent
        for path in output.glob("*/last.ckpt")
        if not path.with_name("result.json").exists() and _is_of(arch, path.parent)
    ]
    idle = [folder for folder in unfinished if not is_locked(folder)]
    if not idle:
        besides = " besides those in use" if unfinished else ""
        raise UserError(
            f"--ckpt_path last: {output} holds no unfinished run of {arch}{besides}; "
            "name one with --name"
        )
    return max(idle, key=lambda folder: (folder / "last.ckpt").stat().st_mtime)
