"""Which records are of which row: by what their configuration resolves to, never by a name."""

import inspect
import json
import shlex
from collections import defaultdict
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from experiments.claims.suite_file import SuiteError
from experiments.claims.suites import RESULTS, Row, Scale
from experiments.console import ArgumentParser, UserError
from experiments.inference.strategies import PLAIN
from experiments.records.record import Evaluation, Record, read_any
from experiments.training.cli import SWITCHES
from experiments.training.configuration import default_config, resolve_config
from experiments.training.length import steps_of_epochs

#: Settings that a training can differ in and still be the same. All others count.
IRRELEVANT = frozenset(
    [
        # where things lie, and what they are called
        *("name", "output", "ckpt_path", "data.root", "data.download", "trainer.default_root_dir"),
        # the seed, which a record states beside its configuration
        *("seed", "seed_everything", "data.seed"),
        # what is shown and logged
        *("wandb", "trainer.logger", "trainer.log_every_n_steps", "trainer.profiler"),
        *("trainer.enable_progress_bar", "trainer.enable_model_summary"),
        *("trainer.enable_autolog_hparams", "trainer.model_registry"),
        # when a run pauses: what has a record has reached its last epoch
        "trainer.max_time",
        # the machine, and how it goes about the same arithmetic
        *("trainer.accelerator", "trainer.benchmark", "trainer.inference_mode"),
        *("model.compile", "model.channels_last", "model.fused", "data.eval_batch_size"),
        # a network that the budget refuses has no record
        *("budget", "budget.limit", "budget.action"),
    ]
)


def training_of(config: dict[str, Any], source: str | None = None) -> str:
    """A text that is equal for configurations with the same training, apart from the seed.

    A setting that an older configuration lacks has today's default. `source` names the images that
    were used if the configuration leaves the choice to the machine.
    """
    return json.dumps(_relevant(config, source), sort_keys=True)


def _relevant(config: dict[str, Any], source: str | None = None) -> dict[str, Any]:
    """`{"model.lr": 0.1, "ema.decay": 0.99, "swa": False, ...}`, filled up, of what counts."""
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
    # A teacher is its weights, whatever its folder is called.
    teachers = settings["teacher"] or []
    teachers = [teachers] if isinstance(teachers, str) else teachers
    settings["teacher"] = [name.rpartition("@")[2] for name in teachers]
    if not teachers:
        settings = {key: x for key, x in settings.items() if not key.startswith("distill.")}
    if settings["trainer.max_steps"] >= steps_of_epochs(config):
        settings["trainer.max_steps"] = -1  # a limit that is not met
    return {key: value for key, value in settings.items() if key not in IRRELEVANT}


def training_of_row(row: Row, scale: Scale) -> str:
    """`training_of` the row's flags: equal for rows that are one and the same training."""
    return _resolve_row(row, scale)[1]


def config_of_row(row: Row, scale: Scale) -> dict[str, Any]:
    """What the row's flags resolve to, with seed 0; not to be changed.

    SuiteError, with file, line and row, where `run.py` refuses one of them.
    """
    return _resolve_row(row, scale)[0]


def _resolve_row(row: Row, scale: Scale) -> tuple[dict[str, Any], str]:
    try:
        return _resolve(tuple(row.flags(scale, seed=0)))
    except UserError as error:
        raise SuiteError(f"{row.where} is refused at {scale} scale: {error}") from None


@cache
def _resolve(flags: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    config = resolve_config(list(flags))
    return config, training_of(config)


@dataclass(frozen=True)
class Results:
    """What has been measured."""

    records: tuple[Record, ...]
    evaluations: tuple[Evaluation, ...] = ()

    @cached_property
    def trainings(self) -> dict[str, dict[int, Record]]:
        """The records of each training by seed, in order; of several with one seed the earliest.

        A run that was copied, or repeated, says nothing of how much runs differ.
        """
        found: dict[str, dict[int, Record]] = defaultdict(dict)
        for record in sorted(self.records, key=lambda x: x.finished):
            found[training_of(record.config, record.source)].setdefault(record.seed, record)
        return {training: dict(sorted(by_seed.items())) for training, by_seed in found.items()}

    def of_row(self, row: Row, scale: Scale) -> dict[int, Record]:
        """Those of the training that a row is."""
        return self.trainings.get(training_of_row(row, scale), {})

    def evaluation_of(self, record: Record) -> Evaluation | None:
        """What `evaluate.py` recorded of a run: the latest that finds its test accuracy again."""
        of_run = [x for x in self.evaluations if x.runs == [record.name] and _agree(x, record)]
        return max(of_run, key=lambda x: x.finished, default=None)


def _agree(evaluation: Evaluation, record: Record) -> bool:
    """Whether both are of the same weights: devices and number formats move a few images."""
    split = "test" if "test" in record.scores else "val"
    ours, theirs = (evaluation.strategies[PLAIN].scores[split], record.scores[split]["raw"])
    return ours.images == theirs.images and abs(ours.accuracy - theirs.accuracy) <= 0.002


def load_results(folder: Path = RESULTS) -> Results:
    """The records and evaluations anywhere under a folder; other files are passed over.

    UserError, in one line, for a file that is broken, of another version or an
    unknown architecture, or edited since it was written.
    """
    records = []
    evaluations = []
    for path in sorted(folder.rglob("*.json")):
        try:
            found = read_any(path)
            if isinstance(found, Record):
                check_record(found)
                records.append(found)
            elif isinstance(found, Evaluation) and len(found.runs) == 1:
                evaluations.append(found)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{path} cannot be used: {reason}") from None
    return Results(tuple(records), tuple(evaluations))


def check_record(record: Record) -> None:
    """ValueError where a record contradicts itself.

    What has a digest was compared with it when it was read. An older record must have the
    configuration that its own commands resolve to.
    """
    for field in ("arch", "seed"):
        if (stated := getattr(record, field)) != record.config.get(field):
            raise ValueError(f"{field} is {stated}, and {record.config.get(field)} in its config")
    if record.digest is not None:
        return
    places = ArgumentParser(add_help=False)
    for flag in ("--name", "--output", "--ckpt_path"):
        places.add_argument(flag)
    # A resumed run goes on with what it was started with, and later flags stand above that.
    words = [word for line in record.command for word in shlex.split(line)[2:]]
    _, flags = places.parse_known_args(words)
    given = _relevant(resolve_config(flags), record.source)
    for key, value in _relevant(record.config, record.source).items():
        if value != given.get(key):
            raise ValueError(
                f"{key} is {value} in its config and {given.get(key)} by its command: "
                "it was edited, or the preset was since"
            )
