"""Scores, tables with charts, and images of a run for W&B."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from experiments.inference.analysis import hardest, reliability
from experiments.records.record import Evaluation, Record
from experiments.tracking.wandb_keys import (
    AUGMENTED,
    CALIBRATION,
    CONFUSION,
    HARDEST,
    STRATEGIES,
    Chart,
)

#: hardest images that are sent
HARDEST_COUNT = 24


def chart_of(chart: Chart, rows: Sequence[Mapping[str, Any]]) -> Any:
    """The value to log as the chart's key, from rows with equal columns."""
    import wandb

    table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
    return wandb.plot_table(chart.design, table, chart.fields, {"title": chart.title})


def results(
    record: Record,
    logits: Mapping[str, Tensor],
    labels: Tensor,
    images: Tensor,
    classes: Sequence[str],
    augmented: Path,
) -> dict[str, Any]:
    """A finished run's results on the test set, as one row.

    `logits` (N, C) are by weights, `labels` int64 (N,), `images` uint8 (N, 3, H, W). `augmented` is
    the picture of training images. Matrix and images show the selected weights.
    """
    import wandb

    selected = logits[record.selected or "raw"]
    return {
        **scalars(record),
        AUGMENTED: wandb.Image(str(augmented)),
        HARDEST: [
            wandb.Image(images[i].permute(1, 2, 0).cpu().numpy(), caption=caption)
            for i, caption in captions(selected, labels, classes).items()
        ],
        CONFUSION.key: chart_of(CONFUSION, confusion_rows(selected, labels, classes)),
        CALIBRATION.key: chart_of(CALIBRATION, calibration_rows(logits, labels)),
    }


def scalars(record: Record) -> dict[str, float]:
    """A record's figures by W&B's keys, such as `{split}/{weights}/{measure}`.

    The weights are "raw", "ema" and "swa", and "selected" for the weights that validation chose.
    """
    figures: dict[str, float] = {
        "parameters": record.parameters,
        "operations_per_image": record.operations_per_image,
        "training_seconds": record.training_seconds,
    }
    for split, scores in record.scores.items():
        named = {**scores, "selected": scores[record.selected or "raw"]}
        for weights, score in named.items():
            for measure in ("accuracy", "nll", "ece"):
                figures[f"{split}/{weights}/{measure}"] = getattr(score, measure)
    return figures


def captions(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[int, str]:
    """The indices of the hardest images, with their class and their predicted class."""
    found = {}
    for i in hardest(logits, labels, HARDEST_COUNT).tolist():
        probability, predicted = logits[i].softmax(dim=0).max(dim=0)
        own, taken = classes[int(labels[i])], classes[int(predicted)]
        found[i] = f"{own}, taken for {taken} ({probability:.0%})"
    return found


def confusion_rows(
    logits: Tensor, labels: Tensor, classes: Sequence[str]
) -> list[dict[str, str | int]]:
    """A row for each pair of classes."""
    matrix = multiclass_confusion_matrix(logits, labels, len(classes))
    return [
        {"actual": classes[i], "predicted": classes[j], "images": count}
        for i, counts in enumerate(matrix.tolist())
        for j, count in enumerate(counts)
    ]


def calibration_rows(logits: Mapping[str, Tensor], labels: Tensor) -> list[dict[str, Any]]:
    """A row for each filled bin of confidence, by weights, and the diagonal's ends."""
    rows: list[dict[str, Any]] = [
        {"weights": "calibrated", "confidence": end, "accuracy": end, "images": 0}
        for end in (0.0, 1.0)
    ]
    for weights, of_weights in logits.items():
        bins = reliability(of_weights, labels)
        columns = (x.tolist() for x in (bins.confidence, bins.accuracy, bins.counts))
        for confidence, accuracy, count in zip(*columns, strict=True):
            if count:
                row = {"confidence": confidence, "accuracy": accuracy, "images": count}
                rows.append({"weights": weights, **row})
    return rows


def strategies(evaluation: Evaluation) -> dict[str, Any]:
    """The chart of every strategy; accuracies and gains in percentage points."""
    rows = []
    for name, result in evaluation.strategies.items():
        row = {
            "strategy": name,
            "chosen": name == evaluation.chosen,
            "fitted_temperature": result.temperature,
            "seconds_per_1000": result.seconds,
        }
        for split, x in result.scores.items():
            points = {"accuracy": x.accuracy, "gain": x.gain}
            points |= {"gain_low": x.gain_low, "gain_high": x.gain_high}
            row |= {f"{split}_{measure}": 100 * share for measure, share in points.items()}
            row |= {f"{split}_nll": x.as_it_is.nll, f"{split}_ece": x.as_it_is.ece}
            if x.fitted:
                row |= {f"{split}_nll_fitted": x.fitted.nll, f"{split}_ece_fitted": x.fitted.ece}
        rows.append(row)
    return {STRATEGIES.key: chart_of(STRATEGIES, rows)}
