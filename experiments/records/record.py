"""The record of a run: everything that a table, a plot or a claim needs, as one JSON file.

`Record` is the documentation of its fields. Later tools read records and never train; a figure that
is printed anywhere can be traced to the record, and from there to the command and the commit.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from experiments.presets import EXPERIMENTS

T = TypeVar("T")


@dataclass(frozen=True)
class Score:
    """How one set of weights answers one split, from a single view of each image."""

    accuracy: float  # share of images, in [0, 1]
    nll: float  # mean negative log-likelihood, in nats
    ece: float  # expected calibration error, L1, 15 bins
    images: int  # number of images
    checkpoint: str  # file in the run folder that the weights come from
    epoch: int  # in which it was written, counted from 1


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
    device: str  # that trained; "2 x" it where there were two
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
    # split ("val", and "test" unless it was left unread) -> weights ("raw", "ema", "swa")
    scores: dict[str, dict[str, Score]]
    # of the last epoch's batches as they were augmented, under mixing against the soft target; None
    # in records of before it was kept
    train_accuracy: float | None = None
    # the effective batch size, over all devices and accumulated batches, that the learning rate
    # `config["model"]["lr"]` is for; None in records of before it was kept
    images_per_step: int | None = None
    # the processor and its threads, also of a run on a GPU; None in records of before it was kept
    host: str | None = None
    # of all other fields as they were written, so that what was edited is refused; None in files of
    # before it was kept
    digest: str | None = field(default=None, compare=False)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a whole epoch: the last one may have been cut short."""
        batches = self.train_images / self.config["data"]["batch_size"]
        return math.ceil(batches / self.config["trainer"]["accumulate_grad_batches"])

    @property
    def weights(self) -> list[str]:
        """The sets of weights that there are: "raw", and "ema" and "swa" where they were on."""
        return list(next(iter(self.scores.values())))


@dataclass(frozen=True)
class Calibration:
    """How far predicted probabilities can be believed."""

    nll: float  # mean negative log-likelihood, in nats
    brier: float  # mean squared distance of the probabilities to the one-hot label, in [0, 2]
    ece: float  # expected calibration error of the predicted class, L1, 15 bins
    classwise_ece: float  # the same of each class's probability, averaged over classes


@dataclass(frozen=True)
class StrategyScore:
    """How one strategy answers one split."""

    accuracy: float  # share of images, in [0, 1]
    gain: float  # accuracy minus the baseline's
    gain_low: float  # from here, ...
    gain_high: float  # ... to here: 95% interval of the gain, paired bootstrap over images
    images: int  # number of images
    as_it_is: Calibration  # with the strategy's own temperature
    fitted: Calibration | None  # with the fitted one; None without validation


@dataclass(frozen=True)
class StrategyResult:
    """One way of predicting, and what came of it."""

    strategy: dict[str, Any]  # the fields of `experiments.inference.strategies.Strategy`
    temperature: float | None  # fitted on validation, on top of the strategy's own
    seconds: float  # for 1,000 images that lie on the device, in the run's evaluation batches
    scores: dict[str, StrategyScore]  # split ("val", "test") -> score


@dataclass(frozen=True)
class Evaluation:
    """Every strategy with the networks of one run, or of several runs together."""

    runs: list[str]  # the folders' names
    command: str  # that evaluated
    source: Literal["cifar10", "synthetic"]  # which images
    commit: str  # of the code that evaluated, as in `Record`
    dirty: bool
    versions: dict[str, str]
    device: str  # the machine that evaluated
    precision: str  # of prediction
    finished: str  # UTC, ISO 8601
    baseline: str  # the strategy that gains are measured against
    # the strategy with the best validation accuracy; without validation the one that was chosen
    # beforehand, None where there was none
    chosen: str | None
    strategies: dict[str, StrategyResult]  # by name
    digest: str | None = field(default=None, compare=False)  # as in `Record`


@dataclass(frozen=True)
class ShiftScore:
    """How one strategy answers one set of images."""

    accuracy: float  # share of images, in [0, 1]
    as_it_is: Calibration  # with the strategy's own temperature
    fitted: Calibration | None  # with the one fitted on clean validation; None without validation


@dataclass(frozen=True)
class ShiftMean:
    """How one strategy answers corrupted images: means over corruptions of means over severities.

    The error is mCE as CIFAR-10-C has it: not divided by another network's (Hendrycks et al. 2020).
    """

    mce: float  # mean corruption error: share of images, in [0, 1]
    as_it_is: Calibration  # its measures' means
    fitted: Calibration | None


@dataclass(frozen=True)
class ShiftResult:
    """One way of predicting, and what distribution shift does to it."""

    strategy: dict[str, Any]  # the fields of `experiments.inference.strategies.Strategy`
    temperature: float | None  # fitted on clean validation, on top of the strategy's own
    clean: ShiftScore  # on the same test images, not corrupted
    corrupted: dict[str, list[ShiftScore]]  # corruption -> at each of `Shift.severities`
    mean_15: ShiftMean  # over the benchmark's corruptions
    mean_19: ShiftMean  # over these and the four that it sets apart
    cifar10_1: ShiftScore | None  # on CIFAR-10.1 v6; None where it was not given


@dataclass(frozen=True)
class Shift:
    """One view of a run's networks, alone and together, on CIFAR-10-C and CIFAR-10.1."""

    run: str  # the folder's name
    command: str  # that evaluated
    source: Literal["cifar10", "synthetic"]  # which images
    commit: str  # of the code that evaluated, as in `Record`
    dirty: bool
    versions: dict[str, str]
    device: str  # the machine that evaluated
    precision: str  # of prediction
    finished: str  # UTC, ISO 8601
    corruptions: Literal["generated", "published"]  # by datamodules.corruptions, or CIFAR-10-C's
    seed: int | None  # of what was generated
    severities: list[int]  # of 1 to 5
    images: int  # under each corruption and severity: the first of the test set
    strategies: dict[str, ShiftResult]  # by name
    digest: str | None = field(default=None, compare=False)  # as in `Record`


def write_record(record: Record | Evaluation | Shift, path: Path) -> None:
    """Write it whole or not at all."""
    fields = asdict(record)
    fields["digest"] = _digest(fields)
    write_atomically(path, json.dumps(fields, indent=2) + "\n")


def _digest(fields: dict[str, Any]) -> str:
    content = {name: value for name, value in fields.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_digest(found: Record | Evaluation | Shift, digest: str) -> None:
    if found.digest not in (None, digest):
        raise ValueError("its content is not what its digest was made of: it was edited")


def write_atomically(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader never meets half a file, also of a full disk."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_record(path: Path) -> Record:
    """Read a record that `write_record` wrote.

    TypeError if a field is missing or unknown; ValueError if the file was edited or if its
    architecture is unknown.
    """
    return _record(json.loads(path.read_text()))


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation that `write_record` wrote; refused as by `read_record`."""
    return _evaluation(json.loads(path.read_text()))


def read_any(path: Path) -> Record | Evaluation | None:
    """Read a record or an evaluation as `read_record` does; None for any other JSON file."""
    fields = json.loads(path.read_text())
    if isinstance(fields, dict):
        if {"arch", "config", "scores"} <= fields.keys():
            return _record(fields)
        if {"runs", "baseline", "strategies"} <= fields.keys():
            return _evaluation(fields)
    return None


def _record(fields: dict[str, Any]) -> Record:
    digest = _digest(fields)
    fields["scores"] = {
        split: {weights: Score(**score) for weights, score in scores.items()}
        for split, scores in fields["scores"].items()
    }
    record = Record(**fields)
    _check_digest(record, digest)
    if record.arch not in EXPERIMENTS:
        raise ValueError(f"its architecture {record.arch} is not known here")
    return record


def _evaluation(fields: dict[str, Any]) -> Evaluation:
    digest = _digest(fields)
    for name, result in fields["strategies"].items():
        result["scores"] = {
            split: _calibrated(StrategyScore, score) for split, score in result["scores"].items()
        }
        fields["strategies"][name] = StrategyResult(**result)
    evaluation = Evaluation(**fields)
    _check_digest(evaluation, digest)
    return evaluation


def read_shift(path: Path) -> Shift:
    """The shift that `write_record` wrote; refused as by `read_record`."""
    fields = json.loads(path.read_text())
    digest = _digest(fields)
    for name, result in fields["strategies"].items():
        result["clean"] = _calibrated(ShiftScore, result["clean"])
        result["corrupted"] = {
            corruption: [_calibrated(ShiftScore, score) for score in scores]
            for corruption, scores in result["corrupted"].items()
        }
        for mean in ("mean_15", "mean_19"):
            result[mean] = _calibrated(ShiftMean, result[mean])
        elsewhere = result["cifar10_1"]
        result["cifar10_1"] = elsewhere and _calibrated(ShiftScore, elsewhere)
        fields["strategies"][name] = ShiftResult(**result)
    shift = Shift(**fields)
    _check_digest(shift, digest)
    return shift


def _calibrated(kind: type[T], fields: dict[str, Any]) -> T:
    """What has its calibration with its own temperature and with the fitted one."""
    as_it_is, fitted = fields["as_it_is"], fields["fitted"]
    calibrations = {
        "as_it_is": Calibration(**as_it_is),
        "fitted": fitted and Calibration(**fitted),
    }
    return kind(**fields | calibrations)
