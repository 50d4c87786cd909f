"""Records of runs, evaluations and benchmarks, each in one JSON file.

Tables, plots and claims are made from records alone. A record names the command and the commit, so
every printed figure can be traced to them.
"""

import hashlib
import json
import math
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from experiments.console import UserError, near
from experiments.presets import EXPERIMENTS
from experiments.records.images import ImageFacts, Source
from experiments.records.parsing import EXACT, read_json


def _known(arch: str) -> str:
    if arch not in EXPERIMENTS:
        known = list(EXPERIMENTS)
        raise ValueError(f"must be one of {', '.join(known)}{near(arch, known)}")
    return arch


#: a name that `--arch` accepts
Arch = Annotated[str, AfterValidator(_known)]


@dataclass(frozen=True, config=EXACT)
class Score:
    """The score of one set of weights on one split, with a single view of each image."""

    accuracy: float  # share of images, in [0, 1]
    nll: float  # mean negative log-likelihood, in nats
    ece: float  # expected calibration error, L1, 15 bins
    images: int  # number of images
    checkpoint: str  # file in the run folder that contains the weights
    epoch: int  # of the checkpoint, counted from 1


@dataclass(frozen=True, config=EXACT)
class Record:
    """One finished run.

    Fields with the default None are missing in older records.
    """

    arch: Arch  # the name after --arch
    name: str  # of the run folder
    command: list[str]  # every command that worked on the run: a resumed run has several
    config: dict[str, Any]  # every flag, resolved
    quick: bool  # whether it was a --quick run, which says nothing about the network
    source: Source  # the data set's own images, or synthetic images instead
    commit: str  # of the code; "unknown" outside a git checkout
    dirty: bool  # whether the checkout differed from that commit
    versions: dict[str, str]  # of Python and of the packages that decide the result
    device: str  # that trained; "2 x" and its name if there were two
    precision: str  # of training, by the Trainer's name
    seed: int  # of initialisation, order and augmentation
    parameters: int  # trainable
    operations_per_image: int  # of one forward pass; a multiply-add counts as two
    epochs: int  # trained
    steps: int  # optimizer steps
    train_images: int  # images trained on in an epoch
    training_seconds: float  # wall clock from the first to the last epoch, validation included
    finished: str  # UTC, ISO 8601
    selected: str | None  # the weights with the best validation accuracy; None without validation
    # split ("val", and "test" unless it was not read) -> weights ("raw", "ema", "swa") -> score
    scores: dict[str, dict[str, Score]]
    train_accuracy: float | None = None  # augmented batches of the last epoch, mixed targets
    # the last raw weights on training images without augmentation, as many as validation images
    clean_train_accuracy: float | None = None
    val_curve: list[float] | None = None  # of the raw weights at each validation, in order
    images_per_step: int | None = None  # effective batch size: all devices, accumulated batches
    rollbacks: int = 0  # of --on_nan rollback
    host: str | None = None  # the processor and its threads, also if a GPU trained
    weights_digest: str | None = None  # of the selected weights; a student names its teacher by it
    blocks_used: float | None = None  # share of gated blocks that images use, if there are gates
    images: ImageFacts | None = None  # None in older records, which are all of CIFAR-10
    # SHA-256 of all other fields as written: edited records are rejected
    digest: str | None = field(default=None, compare=False)

    @property
    def origin(self) -> str:
        """The source; of a folder also the digest of its images."""
        digest = self.images.digest if self.images else None
        return f"{self.source} {digest}" if digest else self.source

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a whole epoch; the last epoch may have had fewer."""
        batches = self.train_images / self.config["data"]["batch_size"]
        return math.ceil(batches / self.config["trainer"]["accumulate_grad_batches"])

    @property
    def weights(self) -> list[str]:
        """The run's sets of weights: "raw", and "ema" and "swa" if they were on."""
        return list(next(iter(self.scores.values())))


@dataclass(frozen=True, config=EXACT)
class Calibration:
    """How reliable predicted probabilities are."""

    nll: float  # mean negative log-likelihood, in nats
    brier: float  # mean squared distance of the probabilities to the one-hot label, in [0, 2]
    ece: float  # expected calibration error of the predicted class, L1, 15 bins
    classwise_ece: float  # the same of each class's probability, averaged over classes


@dataclass(frozen=True, config=EXACT)
class StrategyScore:
    """The score of one strategy on one split."""

    accuracy: float  # share of images, in [0, 1]
    gain: float  # accuracy minus the baseline's accuracy
    gain_low: float  # the 95% interval of the gain, by a paired bootstrap over images: lower end
    gain_high: float  # and upper end
    images: int  # number of images
    as_it_is: Calibration  # with the strategy's own temperature
    fitted: Calibration | None  # with the fitted temperature; None without validation


@dataclass(frozen=True, config=EXACT)
class StrategyResult:
    """One way of predicting, and its results."""

    strategy: dict[str, Any]  # the fields of `experiments.inference.strategies.Strategy`
    temperature: float | None  # fitted on validation, multiplied by the strategy's own temperature
    seconds: float  # for 1,000 images on the device, in the run's evaluation batches
    scores: dict[str, StrategyScore]  # split ("val", "test") -> score


@dataclass(frozen=True, config=EXACT)
class Evaluation:
    """Every strategy with the networks of one run, or of several runs together."""

    runs: list[str]  # the folders' names
    command: str  # that evaluated
    source: Source  # as in `Record`
    commit: str  # of the code that evaluated, as in `Record`
    dirty: bool
    versions: dict[str, str]
    device: str  # that evaluated
    precision: str  # of prediction
    finished: str  # UTC, ISO 8601
    baseline: str  # the strategy that gains are measured against
    # the strategy with the best validation accuracy; without validation, the strategy that was
    # chosen beforehand, or None
    chosen: str | None
    strategies: dict[str, StrategyResult]  # by name
    digest: str | None = field(default=None, compare=False)  # as in `Record`


@dataclass(frozen=True, config=EXACT)
class ShiftScore:
    """The score of one strategy on one set of images."""

    accuracy: float  # share of images, in [0, 1]
    as_it_is: Calibration  # with the strategy's own temperature
    fitted: Calibration | None  # with the temperature fitted on clean validation, if there was any


@dataclass(frozen=True, config=EXACT)
class ShiftMean:
    """One strategy's mean score over corruptions and severities.

    The error is CIFAR-10-C's mCE, not divided by another network's (Hendrycks et al. 2020).
    """

    mce: float  # mean corruption error: share of images, in [0, 1]
    as_it_is: Calibration  # means of the measures
    fitted: Calibration | None


@dataclass(frozen=True, config=EXACT)
class ShiftResult:
    """One way of predicting, and its results under distribution shift."""

    strategy: dict[str, Any]  # the fields of `experiments.inference.strategies.Strategy`
    temperature: float | None  # fitted on clean validation, times the strategy's own temperature
    clean: ShiftScore  # on the same test images, not corrupted
    corrupted: dict[str, list[ShiftScore]]  # corruption -> score at each of `Shift.severities`
    mean_15: ShiftMean  # over the benchmark's 15 corruptions
    mean_19: ShiftMean  # over these and the benchmark's four extra corruptions
    cifar10_1: ShiftScore | None  # on CIFAR-10.1 v6; None if it was not given


@dataclass(frozen=True, config=EXACT)
class Shift:
    """A run's networks, alone and together, on CIFAR-10-C and CIFAR-10.1, one view."""

    run: str  # the folder's name
    command: str  # that evaluated
    source: Literal["cifar10", "synthetic"]  # as in `Record`
    commit: str  # of the code that evaluated, as in `Record`
    dirty: bool
    versions: dict[str, str]
    device: str  # that evaluated
    precision: str  # of prediction
    finished: str  # UTC, ISO 8601
    corruptions: Literal["generated", "published"]  # by datamodules.corruptions, or CIFAR-10-C's
    seed: int | None  # of the generated corruptions
    severities: list[int]  # from 1 to 5
    images: int  # under each corruption and severity: the first images of the test set
    strategies: dict[str, ShiftResult]  # by name
    digest: str | None = field(default=None, compare=False)  # as in `Record`


@dataclass(frozen=True, config=EXACT)
class Benchmark:
    """One run of `benchmark.py`."""

    kind: str  # the subcommand
    command: str  # that measured
    commit: str  # of the measured code, as in `Record`
    dirty: bool
    versions: dict[str, str]
    device: str  # that computed
    host: str  # the processor and its threads, also if a GPU computed
    finished: str  # UTC, ISO 8601
    settings: dict[str, Any]  # the subcommand's flags
    rows: list[dict[str, Any]]  # the table's rows: its figures, and single timings in seconds


Digested = TypeVar("Digested", Record, Evaluation, Shift)


def write_record(record: Record | Evaluation | Shift | Benchmark, path: Path) -> None:
    """Write the whole record, or nothing."""
    fields = asdict(record)
    if "digest" in fields:
        fields["digest"] = _digest(fields)
    write_atomically(path, json.dumps(fields, indent=2) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write to another file and rename it, so that nobody reads half a file."""
    partial = path.with_name(path.name + ".partial")
    try:
        if isinstance(content, bytes):
            partial.write_bytes(content)
        else:
            partial.write_text(content, "utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_record(path: Path) -> Record:
    """A run's record; UserError if a field is wrong, missing, unknown or edited."""
    return _read(Record, path)


def read_evaluation(path: Path) -> Evaluation:
    """A record of `evaluate.py`; UserError as in `read_record`."""
    return _read(Evaluation, path)


def read_shift(path: Path) -> Shift:
    """A record of `evaluate.py --shift`; UserError as in `read_record`."""
    return _read(Shift, path)


def read_benchmark(path: Path) -> Benchmark:
    """A record of `benchmark.py`; UserError if a field is wrong, missing or unknown."""
    return read_json(Benchmark, path)


def read_any(path: Path) -> Record | Evaluation | None:
    """The record or evaluation in a JSON file; None if it contains anything else."""
    fields = read_json(object, path)
    if isinstance(fields, dict):
        if {"arch", "config", "scores"} <= fields.keys():
            return read_record(path)
        if {"runs", "baseline", "strategies"} <= fields.keys():
            return read_evaluation(path)
    return None


def _read(kind: type[Digested], path: Path) -> Digested:
    record = read_json(kind, path)
    if record.digest not in (None, _digest(json.loads(path.read_bytes()))):
        raise UserError(f"{path} does not match its digest: it was edited")
    return record


def _digest(fields: dict[str, Any]) -> str:
    content = {name: value for name, value in fields.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
