"""The decisions before torch is imported: architecture, run folder, checkpoint to resume."""

import argparse
import os
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import yaml

from experiments.console import ArgumentParser, UserError, listing, near
from experiments.presets import EXPERIMENTS
from experiments.records.integrity import check_archive, check_seal
from experiments.training.processes import agree_on_a_name, handed_on, is_first
from experiments.training.run_folder import (
    LAST,
    PREVIOUS,
    is_locked,
    lock_folder,
    make_folder,
    restore_previous,
)
from experiments.training.short_help import short_help

#: groups of flags, which are sections of a `--config` file, and a setting of each
SECTIONS = {
    "model": "lr: 0.1",
    "data": "batch_size: 128",
    "trainer": "max_epochs: 5",
    "distill": "weight: 0.9",
}
#: files that an earlier launch leaves if it ends before its first checkpoint
EARLIER = ("commands.txt", "wandb_id.txt")
IN_USE = "{} is in use: choose another --name, or wait until the process that works on it has ended"


@dataclass(frozen=True)
class Launch:
    """One start of `run.py`."""

    arch: str
    folder: Path  # contains all files of the run
    checkpoint: Path | None  # to resume from
    quick: bool  # a small network and a short schedule
    arguments: list[str]  # for the full parser; later ones replace earlier ones
    made_up: bool = False  # the folder's name; if it is taken, another name is used

    @property
    def resumes(self) -> bool:
        """Whether an earlier launch began this run."""
        return self.checkpoint is not None and self.checkpoint.parent == self.folder


def agents_run_id() -> str | None:
    """The run's id from the agent of a W&B sweep; None without an agent.

    The folder's name contains it, because several agents may start runs at the same time.
    """
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def read_flags(argv: list[str]) -> argparse.Namespace:
    """Read the few flags that others depend on, also from `--config` files.

    UserError for a mistake in them.
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
            # The config.yaml of a run: a repetition needs another name and begins anew.
            for name in ("name", "ckpt_path"):
                content.pop(name, None)
        settings |= content
    given = ("arch", "name", "output", "ckpt_path")
    parser.set_defaults(**{x: str(settings[x]) for x in given if settings.get(x) is not None})
    parser.set_defaults(quick=settings.get("quick") is True)
    return parser.parse_known_args(argv)[0]


def read_launch(argv: list[str]) -> Launch:
    """Read the launch from a command line; UserError for a mistake."""
    flags = read_flags(argv)
    known = list(EXPERIMENTS)
    if flags.arch is None:
        if {"-h", "--help"} & set(argv):
            print(f"usage: run.py --arch NAME [flags]\n\n{listing('NAME', known)}")
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

    Only the first process of a run calls it. UserError if the folder cannot be written or another
    process uses it.
    """
    try:
        folder = make_folder(launch.folder, launch.made_up)
        lock = lock_folder(folder)
        if lock is None:
            raise UserError(IN_USE.format(folder))
        for unfinished in folder.glob("*.partial"):  # by a process that was killed
            unfinished.unlink()
        if not launch.resumes:
            # Files of an earlier launch that ended before its first checkpoint.
            # Without validation images, this one would be evaluated with the weights of that one.
            for earlier in (*folder.glob("best*.ckpt"), *map(folder.joinpath, EARLIER)):
                earlier.unlink(missing_ok=True)
        elif launch.checkpoint == folder / PREVIOUS:
            restore_previous(folder)
    except OSError as error:
        raise UserError(f"--output {launch.folder.parent} cannot be used: {error}") from None
    return replace(launch, folder=folder), lock


def _decided_folder(flags: argparse.Namespace) -> Path | None:
    return handed_on() or (flags.output / flags.name if flags.name else None)


def _resume_last(flags: argparse.Namespace, argv: list[str]) -> Launch:
    """Continue the named run, or else the latest."""
    folder = _decided_folder(flags) or _latest_run(flags.output, flags.arch)
    if not (folder / LAST).exists():
        raise UserError(f"--ckpt_path last: there is no {folder / LAST} to resume from")
    if (folder / "result.json").exists():
        raise UserError(f"--ckpt_path last: {folder} has finished; its record is result.json there")
    check_seal(folder / "config.yaml")
    checkpoint = _sound_checkpoint(folder)
    for best in sorted(folder.glob("best*.ckpt")):
        try:
            check_archive(best)
        except UserError as error:
            raise UserError(f"{error}; delete it to choose from the remaining epochs") from None
    # The settings of the first launch, which the new flags replace.
    arguments = ["--config", str(folder / "config.yaml"), *argv]
    return Launch(flags.arch, folder, checkpoint, flags.quick, arguments)


def _sound_checkpoint(folder: Path) -> Path:
    """The newest undamaged checkpoint of a run; UserError if there is none."""
    try:
        check_archive(folder / LAST)
    except UserError as error:
        previous = folder / PREVIOUS
        if not previous.exists():
            raise UserError(f"--ckpt_path last: {error}, and there is no {previous}") from None
        try:
            check_archive(previous)
        except UserError as other:
            raise UserError(f"--ckpt_path last: {error}, and {other}") from None
        if is_first():
            print(f"{error}. Continuing from {previous}", file=sys.stderr)
        return previous
    return folder / LAST


def _begin(flags: argparse.Namespace, argv: list[str]) -> Launch:
    """Begin a run, from a checkpoint if `--ckpt_path` names one."""
    checkpoint = Path(flags.ckpt_path) if flags.ckpt_path else None
    # Not Path.is_file, which raises if a parent folder forbids access.
    if checkpoint and not os.path.isfile(checkpoint):
        raise UserError(f"--ckpt_path {checkpoint} is not a file")
    folder, identity = _decided_folder(flags), agents_run_id()
    made_up = folder is None and identity is None
    if folder is None:
        folder = flags.output / f"{flags.arch}-{identity or f'{datetime.now():%Y%m%d-%H%M%S}'}"
    if not made_up and any((folder / name).exists() for name in (LAST, "result.json")):
        raise UserError(f"{folder} contains a run: choose another --name, or add --ckpt_path last")
    return Launch(flags.arch, folder, checkpoint, flags.quick, list(argv), made_up)


def _read_config(path: Path) -> dict[str, Any]:
    """Read the settings in a YAML file; ValueError with its name if it is invalid."""
    from experiments.records.parsing import check_yaml

    try:
        text = path.read_text("utf-8")
        check_yaml(text)
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must be a mapping as --print_config writes it, got {content!r:.40}"
        )
    if content.get("config") is not None:
        raise ValueError(
            f"{path} must not have the setting config: name each file with a --config of its own; "
            "the settings of a run are in its config.yaml, not in result.json"
        )
    for name in SECTIONS.keys() & content.keys():
        if not isinstance(content[name], dict | str):  # a text names another file
            raise ValueError(
                f"{path} must have settings below {name}, such as {SECTIONS[name]}, or no {name}, "
                f"got {content[name]!r:.40}"
            )
    return content


def _is_of(arch: str, folder: Path) -> bool:
    """Whether a run has this `--arch`; false if its config.yaml is invalid."""
    try:
        return _read_config(folder / "config.yaml").get("arch") == arch
    except ValueError:
        return False


def _latest_run(output: Path, arch: str) -> Path:
    """The folder of an architecture's newest unfinished run that is not in use.

    The time of its checkpoint counts. UserError if there is no such run.
    """
    unfinished = [
        path.parent
        for path in output.glob(f"*/{LAST}")
        if not path.with_name("result.json").exists() and _is_of(arch, path.parent)
    ]
    idle = [folder for folder in unfinished if not is_locked(folder)]
    if not idle:
        free = " that is not in use" if unfinished else ""
        raise UserError(
            f"--ckpt_path last: {output} holds no unfinished run of {arch}{free}; "
            "name one with --name"
        )
    return max(idle, key=lambda folder: (folder / LAST).stat().st_mtime)
