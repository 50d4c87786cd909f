"""One run in the report: curves, calibration, mistakes, attention, strategies and shift."""

import shlex
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TypeVar

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from datamodules.corruptions import BENCHMARK
from experiments.console import UserError
from experiments.inference.analysis import reliability, wilson_interval
from experiments.inference.finished import FinishedRun
from experiments.records.metrics import read_metrics
from experiments.records.record import Evaluation, Shift
from experiments.reporting.collect import Entry
from experiments.reporting.figures import draw_curves, draw_learning_rate, draw_reliability
from experiments.reporting.inline import Chart, chart
from experiments.reporting.pictures import (
    AttentionPictures,
    Picture,
    attention_pictures,
    augmented_images,
    hardest_images,
)
from lightning_modules.prediction import fit_temperature

T = TypeVar("T")


@dataclass(frozen=True)
class Confusion:
    """The number of images of each class (rows) that got each prediction (columns)."""

    classes: Sequence[str]
    counts: list[list[int]]


@dataclass(frozen=True)
class CorruptionRow:
    """One line of the table of corruptions: a value for each strategy."""

    name: str
    values: list[str]
    mean: bool = False


@dataclass(frozen=True)
class RunDetails:
    """The parts of one run's section; a missing part is a sentence with the reason."""

    entry: Entry
    curves: list[Chart] | str
    reliability: list[Chart] | str
    confusion: Confusion | str
    hardest: list[Picture] | str
    attention: AttentionPictures | str
    augmented: Picture | str
    evaluation: Evaluation | str
    shift: Shift | str

    @property
    def corruptions(self) -> list[list[CorruptionRow]]:
        """Errors in percent: clean, benchmark, other corruptions, and calibration."""
        assert isinstance(self.shift, Shift)
        results = self.shift.strategies.values()

        def row(name: str, errors: list[float], mean: bool = False) -> CorruptionRow:
            return CorruptionRow(name, [f"{100 * error:.2f}" for error in errors], mean)

        def of(name: str) -> CorruptionRow:
            errors = [1 - fmean(score.accuracy for score in x.corrupted[name]) for x in results]
            return row(name.replace("_", " "), errors)

        names = list(next(iter(results)).corrupted)
        return [
            [row("none (clean)", [1 - x.clean.accuracy for x in results])],
            [
                *(of(name) for name in names if name in BENCHMARK),
                row("mCE of these 15", [x.mean_15.mce for x in results], mean=True),
            ],
            [
                *(of(name) for name in names if name not in BENCHMARK),
                row("mCE of all 19", [x.mean_19.mce for x in results], mean=True),
            ],
            [
                CorruptionRow(
                    "ECE, mean of all 19", [f"{x.mean_19.as_it_is.ece:.4f}" for x in results]
                ),
                CorruptionRow(
                    "the same at the fitted temperature",
                    [f"{x.mean_19.fitted.ece:.4f}" if x.mean_19.fitted else "" for x in results],
                ),
            ],
        ]


class ImageSource:
    """The test images of runs. Each set is decoded once and never downloaded."""

    def __init__(self, root: str | None) -> None:
        """`root` is the folder of the images (default: each run's)."""
        self.root = root
        self._sets: dict[tuple[str | None, str, int], tuple[Tensor, Tensor]] = {}

    def test(self, run: FinishedRun) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, 3, H, W) and labels int64 (N,); UserError if they are missing."""
        root = self.root or run.record.config["data"]["root"]
        key = root, run.record.origin, run.images.image_size
        if key not in self._sets:
            data = run.data(root, download=False)
            data.setup("test")
            loader = data.test_dataloader()
            self._sets[key] = loader.images, loader.labels
        return self._sets[key]


def describe_run(entry: Entry, name: str, images: ImageSource) -> RunDetails:
    """All parts of a run with a folder; `name` is unique in the page."""
    parts = _Parts(entry, name, images)
    return RunDetails(
        entry,
        curves=_or_why(parts.curves),
        reliability=_or_why(parts.reliability),
        confusion=_or_why(parts.confusion),
        hardest=_or_why(parts.hardest),
        attention=_or_why(parts.attention),
        augmented=_or_why(parts.augmented),
        evaluation=_or_why(parts.evaluation),
        shift=_or_why(parts.shift),
    )


def _or_why(part: Callable[[], T]) -> T | str:
    """A part, or the reason for its absence: one run must not stop the report."""
    try:
        return part()
    except FileNotFoundError as error:
        return f"Not shown: there is no {error.filename}."
    except (UserError, MisconfigurationException, OSError) as error:
        return f"Not shown: {str(error).rstrip('.')}."
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        reason = f"{type(error).__name__}: {error}"
        return f"Not shown: a file cannot be read ({reason.rstrip('.')})."


class _Parts:
    """The files of a run, each read when a part first needs it."""

    def __init__(self, entry: Entry, name: str, images: ImageSource) -> None:
        assert entry.run is not None
        self.run, self.record, self.weights = entry.run, entry.record, entry.weights
        self.name, self.images = name, images
        self.note = "\n".join([self.record.name, *self.record.command])
        self.place = shlex.quote(str(self.run.folder))
        self.classes = entry.run.images.classes

    @cached_property
    def predictions(self) -> dict[str, Tensor]:
        """`{split}_labels` int64 (N,) and `{split}_{weights}`, logits float32 (N, C)."""
        with np.load(self.run.folder / "predictions.npz") as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}

    def on(self, split: str) -> tuple[Tensor, Tensor]:
        """Logits of the selected weights, and labels."""
        return self.predictions[f"{split}_{self.weights}"], self.predictions[f"{split}_labels"]

    def curves(self) -> list[Chart]:
        metrics = read_metrics(self.run.folder / "metrics.csv")
        record = self.record
        steps = record.steps_per_epoch
        val = record.scores.get("val", {}).get("raw")
        images = "on its training batches"
        images += f" and {val.images:,} validation images" if val else ""
        drawn = [
            (f"Accuracy of {record.name} {images}.", "/acc", draw_curves(metrics, "acc", steps)),
            (f"Loss of {record.name} {images}.", "/loss", draw_curves(metrics, "loss", steps)),
            (
                f"Learning rate of {record.name} over {record.steps:,} steps.",
                "lr",
                draw_learning_rate(metrics, steps),
            ),
        ]
        charts: list[Chart] = []
        for caption, part, drawing in drawn:
            ends = [f"{name} {x[-1][1]:.4g}" for name, x in metrics.items() if part in name]
            description = f"{caption} At the end: {', '.join(ends)}."
            name = f"{self.name}-curve-{len(charts)}"
            charts.append(chart(drawing, name, caption, description, self.note))
        return charts

    def reliability(self) -> list[Chart]:
        temperatures = {"As trained": 1.0}
        if "val_labels" in self.predictions:
            fitted = fit_temperature(*self.on("val"))
            temperatures[f"At temperature {fitted:.3f}, fitted on validation"] = fitted
        logits, labels = self.on("test")
        charts: list[Chart] = []
        for title, temperature in temperatures.items():
            bins = reliability(logits, labels, temperature)
            caption = (
                f"{title}: {self.record.name}, {self.weights} weights, {len(labels):,} test "
                f"images, ECE {bins.ece:.4f}."
            )
            drawing = draw_reliability(bins, wilson_interval(bins.accuracy, bins.counts))
            name = f"{self.name}-reliability-{len(charts)}"
            charts.append(chart(drawing, name, caption, note=self.note))
        return charts

    def confusion(self) -> Confusion:
        counts = multiclass_confusion_matrix(*self.on("test"), len(self.classes))
        return Confusion(self.classes, counts.tolist())

    def hardest(self) -> list[Picture]:
        logits, labels = self.on("test")
        images, labels_here = self.images.test(self.run)
        if not torch.equal(labels, labels_here):
            raise UserError("these test images are not the images of the run")
        return hardest_images(images, labels, logits, self.classes)

    def attention(self) -> AttentionPictures:
        network = self.run.network(self.weights)
        pictures = attention_pictures(network, *self.images.test(self.run), self.run.images)
        if pictures is None:
            raise UserError(f"{self.record.arch} has no attention")
        return pictures

    def augmented(self) -> Picture:
        return augmented_images(self.run.folder / "augmented.png", self.run.images.image_size)

    def evaluation(self) -> Evaluation:
        found = self.run.evaluation()
        if found is None:
            raise UserError(
                f"`python experiments/evaluate.py {self.place}` measures the strategies"
            )
        return found

    def shift(self) -> Shift:
        found = self.run.shift()
        if found is None:
            raise UserError(
                f"`python experiments/evaluate.py {self.place} --shift` measures the shift"
            )
        return found
