"""The record of a benchmark, as one JSON file."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from experiments.records.provenance import describe_device, versions
from experiments.records.record import write_atomically


@dataclass(frozen=True)
class Benchmark:
    """One run of `benchmark.py`."""

    kind: str  # the subcommand
    command: str  # that measured
    commit: str  # of the code that was measured, as in `experiments.records.record.Record`
    dirty: bool
    versions: dict[str, str]
    device: str  # that computed
    host: str  # the machine's processor and the threads in use: `device`, unless that is a GPU
    finished: str  # UTC, ISO 8601
    settings: dict[str, Any]  # the subcommand's flags
    rows: list[dict[str, Any]]  # of the table: its figures, and the single timings in seconds


def make_benchmark(
    flags: argparse.Namespace, code: tuple[str, bool], rows: Sequence[dict[str, Any]]
) -> Benchmark:
    """Make a record of flags, the `git_state()` at the start, and measured rows."""
    commit, dirty = code
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(flags).items()
        if name not in ("kind", "output")
    }
    return Benchmark(
        kind=flags.kind,
        command=shlex.join(["python", *sys.argv]),
        commit=commit,
        dirty=dirty,
        versions=versions(),
        device=describe_device(torch.device(flags.device)),
        host=describe_device(torch.device("cpu")),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=settings,
        rows=list(rows),
    )


def write_benchmark(benchmark: Benchmark, path: Path) -> None:
    """Write it whole or not at all."""
    write_atomically(path, json.dumps(asdict(benchmark), indent=2) + "\n")


def read_benchmark(path: Path) -> Benchmark:
    """Read a record of `write_benchmark`; TypeError if a field is missing or unknown."""
    return Benchmark(**json.loads(path.read_text()))
