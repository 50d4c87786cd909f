"""What is decided before torch is imported: the architecture, the run folder, what to resume."""

import argparse
import difflib
import os
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import yaml

from experiments.training.presets import EXPERIMENTS
from experiments.training.processes import (
    agree_on_a_name,
    await_parents_end,
    handed_on,
    is_first_of_machine,
)

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def fail(message: str) -> NoReturn:
    """End with a user's mistake: exit code 2, and one line of the first process of a machine."""
    if is_first_of_machine():
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    else:
        await_parents_end()
    sys.exit(2)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with flags in full only and with errors that are one line and exit code 2."""

    def __init__(self, description: str | None = None, add_help: bool = True) -> None:
        super().__init__(description=description, add_help=add_help, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        fail(message)


@dataclass(frozen=True)
class Launch:
    """One start of `run.py`."""

    arch: str
    folder: Path  # where everything of the run is written
    checkpoint: Path | None  # what is resumed
    quick: bool  # a small network for a short time
    arguments: list[str]  # for the full parser: what the user gave, behind what it stands on

    @property
    def resumes(self) -> bool:
        """Whether an earlier launch began this very run."""
        return self.checkpoint is not None and self.checkpoint.parent == self.folder


def agents_run_id() -> str | None:
    """The id that the agent of a W&B sweep has given to the run that it starts; None without one.

    It is in the folder's name as well: several agents of a machine may start runs at one time.
    """
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def near(name: str, names: list[str]) -> str:
    """A hint at the names that were probably meant, or nothing."""
    matches = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""


def read_launch(argv: list[str]) -> Launch:
    """Read the few flags that everything else depends on; a mistake in them ends the process."""
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--arch")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--output", type=Path, default=Path("runs"))
    parser.add_argument("--ckpt_path")
    parser.add_argument("--quick", action="store_true")
    flags, _ = parser.parse_known_args(argv)
    config = _read_config(flags.config) if flags.config else {}
    arch = flags.arch or config.get("arch")
    known = list(EXPERIMENTS)
    if arch is None:
        if {"-h", "--help"} & set(argv):
            print(f"usage: run.py --arch NAME [flags]\n\nNAME: {', '.join(known)}")
            print("Every flag of one architecture: run.py --arch NAME --help")
            sys.exit(0)
        fail(f"--arch is missing: name one of {', '.join(known)}")
    if arch not in known:
        fail(f"--arch {arch} is unknown{near(str(arch), known)}: name one of {', '.join(known)}")

    if not flags.name and not agree_on_a_name():
        fail("--name is missing: processes that torchrun, SLURM or you start must agree on it")
    arguments = list(argv)
    checkpoint = None
    decided = handed_on() or (flags.output / flags.name if flags.name else None)
    if flags.ckpt_path == "last":
        folder = decided or _latest_run(flags.output, arch)
        checkpoint = folder / "last.ckpt"
        if not checkpoint.exists():
            fail(f"--ckpt_path last: there is no {checkpoint} to resume from")
        if (folder / "result.json").exists():
            fail(f"--ckpt_path last: {folder} has finished, its record is {folder}/result.json")
        # The run goes on with what it was started with; flags given now stand above that.
        arguments = ["--config", str(folder / "config.yaml"), *argv]
    else:
        own = agents_run_id() or f"{datetime.now():%Y%m%d-%H%M%S}"
        folder = decided or flags.output / f"{arch}-{own}"
        if flags.ckpt_path:
            checkpoint = Path(flags.ckpt_path)
            if not checkpoint.is_file():
                fail(f"--ckpt_path {checkpoint} is not a file")
        if any((folder / name).exists() for name in ("last.ckpt", "result.json")):
            fail(f"{folder} holds a run: choose another --name, or resume it with --ckpt_path last")
    return Launch(arch, folder, checkpoint, flags.quick, arguments)


def _read_config(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; a file without any ends the process."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        fail(f"--config {path} cannot be read: {error}")
    if not isinstance(content, dict):
        fail(f"--config {path} must be a mapping as --print_config writes it, got {content!r:.40}")
    return content


def _latest_run(output: Path, arch: str) -> Path:
    """The unfinished run of an architecture whose checkpoint is the newest."""
    found = [
        path
        for path in output.glob("*/last.ckpt")
        if (config := path.with_name("config.yaml")).exists()
        and _read_config(config).get("arch") == arch
    ]
    unfinished = [path for path in found if not path.with_name("result.json").exists()]
    if not unfinished:
        fail(f"--ckpt_path last: {output} holds no unfinished run of {arch}; name one with --name")
    return max(unfinished, key=lambda path: path.stat().st_mtime).parent
