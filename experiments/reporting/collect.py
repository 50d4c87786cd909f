"""Every record and every finished run under some paths, each once, the best first."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from experiments.console import UserError
from experiments.inference.finished import FinishedRun, open_run, read
from experiments.records.record import Evaluation, Record, Score, read_any, read_record

T = TypeVar("T")

#: where runs and records lie unless paths are given
RUNS, RECORDS = Path("runs"), Path("experiments/results")


@dataclass(frozen=True)
class Entry:
    """A record, and the run that it is of where its folder is there too."""

    record: Record
    run: FinishedRun | None

    @property
    def weights(self) -> str:
        """Those that were best on validation, else the raw ones."""
        return self.record.selected or "raw"

    @property
    def test(self) -> Score:
        return self.record.scores["test"][self.weights]

    @property
    def val(self) -> Score | None:
        return self.record.scores.get("val", {}).get(self.weights)

    @property
    def comparable(self) -> bool:
        """Whether its accuracy says something of its network: not where synthetic or quick."""
        return self.record.source == "cifar10" and not self.record.quick


@dataclass(frozen=True)
class Collection:
    """What a report is made of."""

    entries: list[Entry]  # the best on validation first, those that do not compare last
    unread: list[Record]  # that left the test set unread, as of runs that were to be chosen among
    evaluations: list[Evaluation]  # of single runs

    @property
    def records(self) -> list[Record]:
        """All of them."""
        return [entry.record for entry in self.entries] + self.unread


def collect(paths: list[Path]) -> Collection:
    """What lies in run folders, record files and folders of these, at any depth.

    A record that also lies in its run's folder counts once. UserError, in one line,
    where a path holds neither or a file of it cannot be read. Without paths, every run under `RUNS`
    that can be read, the others with a line on stderr, and every record under `RECORDS`.
    """
    found: list[FinishedRun | Record | Evaluation] = []
    for path in paths:
        here = list(_look(path))
        if not any(isinstance(x, FinishedRun | Record) for x in here):
            raise UserError(f"{path} holds neither a finished run nor a record")
        found += here
    if not paths:
        folders = [path for path in _files(RUNS) if path.is_dir()]
        found += [x for x in (_or_pass_over(partial(open_run, path)) for path in folders) if x]
        found += _look(RECORDS) if RECORDS.is_dir() else []
    runs = [x for x in found if isinstance(x, FinishedRun)]
    of_runs = [run.evaluation() if paths else _or_pass_over(run.evaluation) for run in runs]
    evaluations = [x for x in [*found, *of_runs] if isinstance(x, Evaluation) and len(x.runs) == 1]
    # Runs behind, so that they take the places of their records.
    entries = [Entry(x, None) for x in found if isinstance(x, Record)]
    entries += [Entry(run.record, run) for run in runs]
    unique = {(e.record.name, e.record.arch, e.record.finished): e for e in entries}.values()
    tested = [entry for entry in unique if "test" in entry.record.scores]
    unread = [entry.record for entry in unique if "test" not in entry.record.scores]
    return Collection(sorted(tested, key=_merit), unread, evaluations)


def _or_pass_over(opened: Callable[[], T | None]) -> T | None:
    """What is opened; None, with a line on stderr, where it is refused."""
    try:
        return opened()
    except UserError as error:
        print(f"passed over: {error}", file=sys.stderr)
        return None


def _merit(entry: Entry) -> tuple[bool, float, str]:
    return (not entry.comparable, -entry.val.accuracy if entry.val else 0.0, entry.record.name)


def _look(path: Path) -> Iterator[FinishedRun | Record | Evaluation]:
    if not path.exists():
        raise UserError(f"{path} does not exist: name a run, a record or a folder")
    if path.is_file():
        yield read(read_record, path)
        return
    for file in _files(path):
        if file.is_dir():
            yield open_run(file)
        elif found := read(read_any, file):
            yield found


def _files(path: Path) -> Iterator[Path]:
    """The folders of finished runs under a folder, and JSON files that are in no run's folder.

    What else is in a run's folder, such as W&B's files, may be half written.
    """
    for name, below, files in os.walk(path):
        folder = Path(name)
        if "result.json" in files:
            yield folder
        if {"result.json", "config.yaml"} & set(files):  # a run, the latter before it has finished
            below.clear()
        else:
            yield from (folder / file for file in sorted(files) if file.endswith(".json"))
        below.sort()
