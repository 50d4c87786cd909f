"""Every record and every finished run under some paths, each once, the best first."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from experiments.records.finished import FinishedRun, open_run
from experiments.records.record import Evaluation, Record, Score, read_evaluation, read_record

T = TypeVar("T", Record, Evaluation)

#: where runs and records lie unless paths are given
DEFAULT = (Path("runs"), Path("experiments/results"))


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
    evaluations: list[Evaluation]  # of single runs


def collect(paths: list[Path]) -> Collection:
    """What lies in run folders, record files and folders of these, at any depth.

    A record that also lies in its run's folder counts once. MisconfigurationException, in one line,
    where a path holds neither; without paths, what there is under `DEFAULT`.
    """
    runs: list[FinishedRun] = []
    records: list[Record] = []
    evaluations: list[Evaluation] = []
    for path in paths or [path for path in DEFAULT if path.is_dir()]:
        found = list(_look(path))
        runs += [x for x in found if isinstance(x, FinishedRun)]
        records += [x for x in found if isinstance(x, Record)]
        evaluations += [x for x in found if isinstance(x, Evaluation) and len(x.runs) == 1]
        if paths and not any(isinstance(x, FinishedRun | Record) for x in found):
            raise MisconfigurationException(f"{path} holds neither a finished run nor a record")
    evaluations += [x for x in (run.evaluation() for run in runs) if x]
    # Runs behind, so that they take the places of their records.
    entries = [Entry(x, None) for x in records] + [Entry(run.record, run) for run in runs]
    # Of runs that were to be chosen among the test set may be unread.
    tested = [e for e in entries if "test" in e.record.scores]
    unique = {(e.record.name, e.record.arch, e.record.finished): e for e in tested}
    return Collection(sorted(unique.values(), key=_merit), evaluations)


def _merit(entry: Entry) -> tuple[bool, float, str]:
    return (not entry.comparable, -entry.val.accuracy if entry.val else 0.0, entry.record.name)


def _look(path: Path) -> Iterator[FinishedRun | Record | Evaluation]:
    if not path.exists():
        raise MisconfigurationException(f"{path} does not exist: name a run, a record or a folder")
    if path.is_file():
        yield _read(read_record, path)
    elif (path / "result.json").exists():
        yield open_run(path)
    else:
        for file in sorted(path.rglob("*.json")):
            if file.name == "result.json":
                yield open_run(file.parent)
            elif not (file.parent / "result.json").exists():
                yield from _recognise(file)


def _recognise(path: Path) -> Iterator[Record | Evaluation]:
    """What a file among others holds, if it is a run's record or an evaluation."""
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise MisconfigurationException(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        return
    if {"arch", "config", "scores"} <= fields.keys():
        yield _read(read_record, path)
    elif {"runs", "baseline", "strategies"} <= fields.keys():
        yield _read(read_evaluation, path)


def _read(reader: Callable[[Path], T], path: Path) -> T:
    try:
        return reader(path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MisconfigurationException(
            f"{path} is not a record of this version: {type(error).__name__} {error}"
        ) from None
