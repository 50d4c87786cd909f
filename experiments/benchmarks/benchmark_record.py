"""A benchmark's record, from its flags and rows."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.records.provenance import describe_device
from experiments.records.record import Benchmark


def make_benchmark(
    flags: argparse.Namespace, made_by: dict[str, Any], rows: Sequence[dict[str, Any]]
) -> Benchmark:
    """The record of measured rows; `made_by` is `origin()` at the start."""
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(flags).items()
        if name not in ("kind", "output")
    }
    return Benchmark(
        kind=flags.kind,
        command=shlex.join(["python", *sys.argv]),
        **made_by,
        host=describe_device(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=settings,
        rows=list(rows),
    )
