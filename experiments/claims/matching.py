"""Match records to the rows of suites by their resolved settings, never by a name."""

import inspect
import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments.claims.measures import SINGLE_VIEWS
from experiments.claims.suites import RESULTS, Row, Scale
from experiments.console import ArgumentParser, UserError
from experiments.records.record import Evaluation, Record, read_any
from experiments.training.cli import SWITCHES
from experiments.training.combinations import IRRELEVANT
from experiments.training.configuration import default_config, resolve_config
from experiments.training.length import steps_of_epochs


def training_of(
    config: dict[str, Any],
    source: str | None = None,
    teachers: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """A text that is equal for configurations of the same training with any seed.

    A setting that an older configuration lacks has today's default. `source` is the record's
    origin of the images. `teachers` maps digests of weights to the trainings
    that made them: students whose teachers differ only in their seeds have the same training.
    """
    return json.dumps(_relevant(config, source, teachers), sort_keys=True)


def known_teachers(records: Iterable[Record]) -> dict[str, str]:
    """Map the digests of weights to the trainings that made them, for `training_of`."""
    known: dict[str, str] = {}
    for record in sorted(records, key=lambda x: x.finished):  # a student begins after its teacher
        if record.weights_digest:
            known[record.weights_digest] = training_of(record.config, record.origin, known)
    return known


def _relevant(
    config: dict[str, Any],
    source: str | None = None,
    teachers: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """All settings that count: `{"model.lr": 0.1, "swa": False, ...}`."""
    defaults = default_config(config["arch"])
    settings: dict[str, Any] = {}
    for group, value in (defaults | config).items():
        known, given = defaults.get(group), value
        if group in SWITCHES and value:
            parameters = inspect.signature(SWITCHES[group][0]).parameters.values()
            known, given = {x.name: x.default for x in parameters}, {} if value is True else value
        if isinstance(given, dict):
            filled = (known or {}) | given
            settings |= {f"{group}.{key}": x for key, x in filled.items()}
        else:
            settings[group] = given
    if source is not None:
        settings["data.source"] = source
    # A teacher is its training or else its weights, whatever its folder is called.
    names = settings["teacher"] or []
    digests = [x.rpartition("@")[2] for x in ([names] if isinstance(names, str) else names)]
    settings["teacher"] = [teachers.get(digest, digest) for digest in digests]
    if not digests:
        settings = {key: x for key, x in settings.items() if not key.startswith("distill.")}
    # The length of a folder's epoch is not in a configuration.
    of_folder = settings["data.dataset"] == "folder"
    if not of_folder and settings["trainer.max_steps"] >= steps_of_epochs(config):
        settings["trainer.max_steps"] = -1  # a limit that is never reached
    return {key: value for key, value in settings.items() if key not in IRRELEVANT}


def training_of_row(row: Row, scale: Scale) -> str:
    """`training_of` for the row's flags: equal for rows with the same training."""
    return _resolve_row(row, scale)[1]


def config_of_row(row: Row, scale: Scale) -> dict[str, Any]:
    """The configuration of a row's flags with seed 0; do not change it.

    UserError, with file, line and row, if `run.py` rejects a flag.
    """
    return _resolve_row(row, scale)[0]


def _resolve_row(row: Row, scale: Scale) -> tuple[dict[str, Any], str]:
    flags, teacher = row.flags(scale, seed=0), ""
    if row.taught_by is not None:
        flags.append(f"--teacher={row.taught_by.name}")
        teacher = training_of_row(row.taught_by, scale)
    try:
        return _resolve(tuple(flags), teacher)
    except UserError as error:
        raise UserError(f"{row.where} is refused at {scale} scale: {error}") from None


@cache
def _resolve(flags: tuple[str, ...], teacher: str) -> tuple[dict[str, Any], str]:
    config = resolve_config(list(flags))
    return config, training_of(config, teachers={config["teacher"]: teacher})


@dataclass(frozen=True)
class Results:
    """The records of trainings and evaluations."""

    records: tuple[Record, ...]
    evaluations: tuple[Evaluation, ...] = ()

    @cached_property
    def trainings(self) -> dict[str, dict[int, Record]]:
        """The records of each training by seed; for a repeated seed the earliest record.

        A copied or repeated run does not show how much runs differ.
        """
        found: dict[str, dict[int, Record]] = defaultdict(dict)
        teachers = known_teachers(self.records)
        for record in sorted(self.records, key=lambda x: x.finished):
            training = training_of(record.config, record.origin, teachers)
            found[training].setdefault(record.seed, record)
        return {training: dict(sorted(by_seed.items())) for training, by_seed in found.items()}

    def of_row(self, row: Row, scale: Scale) -> dict[int, Record]:
        """The records of a row's training by seed."""
        return self.trainings.get(training_of_row(row, scale), {})

    def evaluation_of(self, record: Record) -> Evaluation | None:
        """The latest evaluation of a run that agrees with its record, or None."""
        of_run = [x for x in self.evaluations if x.runs == [record.name] and _agree(x, record)]
        return max(of_run, key=lambda x: x.finished, default=None)


def _agree(evaluation: Evaluation, record: Record) -> bool:
    """Whether both accuracies agree up to the rounding of devices and precisions."""
    split = "test" if "test" in record.scores else "val"
    ours = evaluation.strategies[evaluation.baseline].scores[split]
    # An export has one set of weights, which may be another one than the evaluation's baseline.
    theirs = record.scores[split].get(SINGLE_VIEWS[evaluation.baseline])
    if theirs is None:
        return False
    return ours.images == theirs.images and abs(ours.accuracy - theirs.accuracy) <= 0.002


def load_results(folder: Path = RESULTS) -> Results:
    """Load the records and evaluations under a folder; other files are ignored.

    UserError for a file that is damaged, edited, or of another version or architecture.
    """
    records = []
    evaluations = []
    for path in sorted(folder.rglob("*.json")):
        found = read_any(path)
        try:
            if isinstance(found, Record):
                check_record(found)
                records.append(found)
            elif isinstance(found, Evaluation) and len(found.runs) == 1:
                evaluations.append(found)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{path} contradicts itself: {reason}") from None
    return Results(tuple(records), tuple(evaluations))


def check_record(record: Record) -> None:
    """Raise ValueError if a record contradicts itself.

    A digest is checked when a record is read. An older record without a digest must have the
    configuration of its commands.
    """
    for field in ("arch", "seed"):
        if (stated := getattr(record, field)) != record.config.get(field):
            raise ValueError(f"{field} is {stated}, and {record.config.get(field)} in its config")
    if record.digest is not None:
        return
    places = ArgumentParser(add_help=False)
    for flag in ("--name", "--output", "--ckpt_path"):
        places.add_argument(flag)
    # A resumed run keeps its first settings, which later flags replace.
    words = [word for line in record.command for word in shlex.split(line)[2:]]
    _, flags = places.parse_known_args(words)
    given = _relevant(resolve_config(flags), record.origin)
    for key, value in _relevant(record.config, record.origin).items():
        if value != given.get(key):
            raise ValueError(
                f"{key} is {value} in its config and {given.get(key)} by its command: "
                "the record was edited, or the preset has changed since"
            )
