"""Find every record and every finished run under some paths, each once."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from experiments.console import UserError
from experiments.records.record import Evaluation, Record, Score, read_any, read_record

if TYPE_CHECKING:
    from experiments.inference.finished import FinishedRun

T = TypeVar("T")

#: the default folders of runs and records
RUNS, RECORDS = Path("runs"), Path("experiments/results")


@dataclass(frozen=True)
class Entry:
    """A record, and its run if the run's folder was found."""

    record: Record
    run: "FinishedRun | None"

    @property
    def weights(self) -> str:
        """The weights with the best validation accuracy; raw weights without validation."""
        return self.record.selected or "raw"

    @property
    def test(self) -> Score:
        return self.record.scores["test"][self.weights]

    @property
    def val(self) -> Score | None:
        return self.record.scores.get("val", {}).get(self.weights)


@dataclass(frozen=True)
class Collection:
    """The records and runs of a report."""

    entries: list[Entry]  # runs with a test accuracy
    unread: list[Record]  # of runs with `--test false`
    evaluations: list[Evaluation]  # of single runs

    @property
    def records(self) -> list[Record]:
        """All records, also of runs without a test accuracy."""
        return [entry.record for entry in self.entries] + self.unread


def collect(paths: list[Path]) -> Collection:
    """The content of run folders, record files and folders of these, at any depth.

    A copy of a run's record counts once. UserError if a path contains neither, or if a file cannot
    be read. Without paths, collects the runs under `RUNS` and the records under `RECORDS`; a line
    on stderr names each unreadable run.
    """
    found: list[FinishedRun | Record | Evaluation] = []
    for path in paths:
        here = list(_look(path))
        if all(isinstance(x, Evaluation) for x in here):
            raise UserError(f"{path} contains neither a finished run nor a record")
        found += here
    if not paths:
        folders = [path for path in _files(RUNS) if path.is_dir()]
        found += [x for x in (_or_pass_over(partial(_open, path)) for path in folders) if x]
        found += _look(RECORDS) if RECORDS.is_dir() else []
    runs = [x for x in found if not isinstance(x, Record | Evaluation)]
    of_runs = [run.evaluation() if paths else _or_pass_over(run.evaluation) for run in runs]
    evaluations = [x for x in [*found, *of_runs] if isinstance(x, Evaluation) and len(x.runs) == 1]
    # Runs come last, so that they replace their own records.
    entries = [Entry(x, None) for x in found if isinstance(x, Record)]
    entries += [Entry(run.record, run) for run in runs]
    unique = {(e.record.name, e.record.arch, e.record.finished): e for e in entries}.values()
    tested = [entry for entry in unique if "test" in entry.record.scores]
    unread = [entry.record for entry in unique if "test" not in entry.record.scores]
    return Collection(tested, unread, evaluations)


def _or_pass_over(opened: Callable[[], T | None]) -> T | None:
    """The opened object; None, with a line on stderr, if it cannot be opened."""
    try:
        return opened()
    except UserError as error:
        print(f"passed over: {error}", file=sys.stderr)
        return None


def _open(folder: Path) -> "FinishedRun":
    from experiments.inference.finished import open_run  # imports torch: seconds

    return open_run(folder)


def _look(path: Path) -> Iterator["FinishedRun | Record | Evaluation"]:
    if path.is_file():
        yield read_record(path)
        return
    for file in _files(path):
        if file.is_dir():
            yield _open(file)
        elif found := read_any(file):
            yield found


def _files(path: Path) -> Iterator[Path]:
    """The folders of finished runs under a folder, and JSON files outside of runs.

    Other files in a run's folder, such as W&B's, may be incomplete.
    """
    for name, below, files in os.walk(path):
        folder = Path(name)
        if "result.json" in files:
            yield folder
        if {"result.json", "config.yaml"} & set(files):  # a finished or an unfinished run
            below.clear()
        else:
            yield from (folder / file for file in sorted(files) if file.endswith(".json"))
        below.sort()
