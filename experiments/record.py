"""The record of a run: everything that a table, a plot or a claim needs, as one JSON file.

`Record` is the documentation of its fields. Later tools read records and never train; a figure that
is printed anywhere can be traced to the record, and from there to the command and the commit.
"""

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
import torchmetrics
import torchvision

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Score:
    """How one set of weights answers one split, from a single view of each image."""

    accuracy: float  # share of images, in [0, 1]
    nll: float  # mean negative log-likelihood, in nats
    ece: float  # expected calibration error, L1, 15 bins
    images: int  # number of images
    checkpoint: str  # file in the run folder that the weights come from
    epoch: int  # epochs trained when it was written


@dataclass(frozen=True)
class Record:
    """One finished run."""

    arch: str  # the name after --arch
    name: str  # the run folder's name
    command: list[str]  # each command that worked on the run: more than one where it was resumed
    config: dict[str, Any]  # every flag, resolved
    quick: bool  # a --quick run: shows that everything works, says nothing about the network
    source: Literal["cifar10", "synthetic"]  # which images: CIFAR-10 or the procedural stand-in
    commit: str  # of the code; "unknown" outside a git checkout
    dirty: bool  # whether the checkout differed from that commit
    versions: dict[str, str]  # of Python and of the packages that decide the result
    device: str  # the machine that trained
    precision: str  # of training, as the Trainer names it
    seed: int  # of initialisation, order and augmentation
    parameters: int  # trainable
    operations_per_image: int  # of one forward pass, a multiply-add counted as two
    epochs: int  # trained
    steps: int  # optimizer steps
    train_images: int  # images trained on in an epoch
    training_seconds: float  # wall clock from the first to the last epoch, validation included
    finished: str  # UTC, ISO 8601
    selected: str | None  # the weights with the best validation accuracy; None without validation
    scores: dict[str, dict[str, Score]]  # split ("val", "test") -> weights ("raw", "ema", "swa")


def write_record(record: Record, path: Path) -> None:
    """Write it whole or not at all."""
    write_atomically(path, json.dumps(asdict(record), indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader never meets half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def read_record(path: Path) -> Record:
    """The record that `write_record` wrote; TypeError where a field is missing or unknown."""
    fields = json.loads(path.read_text())
    fields["scores"] = {
        split: {weights: Score(**score) for weights, score in scores.items()}
        for split, scores in fields["scores"].items()
    }
    return Record(**fields)


def git_state() -> tuple[str, bool]:
    """The commit of the code that runs, and whether tracked files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no") != ""
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    packages = (torch, torchvision, lightning, torchmetrics)
    return {"python": platform.python_version()} | {p.__name__: p.__version__ for p in packages}


def describe_device(device: torch.device) -> str:
    """The accelerator's name, or the processor's with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name} ({torch.get_num_threads()} of {os.cpu_count()} CPUs)"
