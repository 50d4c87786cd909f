"""Runs that differ only in their seed, as one configuration with means over seeds."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from experiments.claims.matching import known_teachers, training_of, training_of_row
from experiments.claims.seed_statistics import Estimate, mean_of
from experiments.claims.suites import load_suites
from experiments.records.record import Record
from experiments.reporting.collect import Entry
from experiments.training.configuration import resolve_config


@dataclass(frozen=True)
class Configuration:
    """All runs of one training."""

    settings: str  # that differ from the architecture's preset
    entries: list[Entry]  # by seed, then by time; never empty
    folded: bool  # a miniature of a suite, a --quick run, or trained on synthetic images

    @property
    def record(self) -> Record:
        """The record of the first run."""
        return self.entries[0].record

    @property
    def names(self) -> str:
        """The names of all runs."""
        return ", ".join(entry.record.name for entry in self.entries)

    @property
    def nll(self) -> float:
        return self.mean(lambda entry: entry.test.nll).value

    @property
    def ece(self) -> float:
        return self.mean(lambda entry: entry.test.ece).value

    @property
    def seconds(self) -> float | None:
        """Mean duration of training; None if the runs used different devices."""
        if len({entry.record.device for entry in self.entries}) > 1:
            return None
        return self.mean(lambda entry: entry.record.training_seconds).value

    @property
    def test(self) -> Estimate:
        """Test accuracy over seeds, in percent."""
        return self.mean(lambda entry: 100 * entry.test.accuracy)

    @property
    def val(self) -> Estimate | None:
        """Validation accuracy over seeds, in percent; None without validation."""
        if any(entry.val is None for entry in self.entries):
            return None
        return self.mean(lambda entry: 100 * entry.val.accuracy if entry.val else 0.0)

    def mean(self, value: Callable[[Entry], float]) -> Estimate:
        """The mean of a value over seeds; a repeated seed counts by its earliest run."""
        by_seed: dict[int, float] = {}
        for entry in self.entries:
            by_seed.setdefault(entry.record.seed, value(entry))
        return mean_of(list(by_seed.values()))


def configurations(entries: Iterable[Entry]) -> list[Configuration]:
    """The configurations of runs, by validation accuracy; folded ones come last."""
    groups: dict[tuple[str, bool], list[Entry]] = defaultdict(list)
    entries = sorted(entries, key=lambda x: (x.record.seed, x.record.finished))
    teachers = known_teachers(entry.record for entry in entries)
    for entry in entries:
        record = entry.record
        training = training_of(record.config, record.origin, teachers)
        groups[training, record.quick].append(entry)
    miniatures = _miniatures() if groups else set()
    found = []
    for (training, quick), members in groups.items():
        record = members[0].record
        folded = quick or record.source == "synthetic" or training in miniatures
        found.append(Configuration(_settings(record, training), members, folded))
    return sorted(found, key=_merit)


def _merit(x: Configuration) -> tuple[bool, bool, bool, float, str]:
    quick, others = x.record.quick, x.record.source != "cifar10"
    return (x.folded, others, quick, -x.val.value if x.val else 0.0, x.names)


def _miniatures() -> set[str]:
    """The trainings of all suites at the scale `mini` that are no full training."""
    rows = [row for suite in load_suites().values() for row in suite.trained_rows]
    full = {training_of_row(row, "full") for row in rows}
    return {training_of_row(row, "mini") for row in rows} - full


def _settings(record: Record, training: str) -> str:
    preset: dict[str, Any] = json.loads(training_of(resolve_config([f"--arch={record.arch}"])))
    changed = {
        name: value
        for name, value in json.loads(training).items()
        if name not in preset or preset[name] != value
    }
    if "teacher" in changed:  # a known one is a training, an unknown one the digest of its weights
        known = (json.loads(x)["arch"] if x.startswith("{") else x for x in changed["teacher"])
        changed["teacher"] = " ".join(known)
    # The source is in `changed` if the preset leaves it to the machine.
    changed.pop("data.source", None)
    return ", ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in changed.items()
    )
