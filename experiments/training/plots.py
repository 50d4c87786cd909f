"""Pictures of one run: augmented training images, curves, confusion matrix."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.utils import save_image

from experiments.records.metrics import Points
from experiments.records.record import write_atomically


def plot_augmented(images: Tensor, mean: Tensor, std: Tensor, path: Path) -> None:
    """A grid of normalised images float32 (N, 3, H, W), in their original colours."""
    visible = images * std[:, None, None] + mean[:, None, None]
    picture = BytesIO()
    save_image(visible.clamp(0, 1), picture, nrow=8, format="png")
    write_atomically(path, picture.getvalue())


def plot_confusion(logits: Tensor, labels: Tensor, classes: tuple[str, ...], path: Path) -> None:
    """The number of images of each class that were predicted as each class."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    matrix = MulticlassConfusionMatrix(len(classes))
    matrix.update(logits.argmax(dim=1), labels)
    matrix.plot(ax=figure.subplots(), labels=list(classes), cmap="Blues")
    _write(figure, path)


def plot_curves(metrics: Mapping[str, Points], path: Path) -> None:
    """Accuracy, loss and learning rate over optimizer steps."""
    panels = {"accuracy": "/acc", "loss": "/loss", "learning rate": "lr-"}
    figure = Figure(figsize=(15, 4), layout="constrained")
    axes = figure.subplots(1, len(panels))
    for axis, (title, part) in zip(axes, panels.items(), strict=True):
        for key in sorted(x for x in metrics if part in x and x != "train/loss_scale"):
            points = metrics[key]
            axis.plot(*zip(*points, strict=True), label=key, marker="." if len(points) < 30 else "")
        axis.set(xlabel="step", ylabel=title)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    picture = BytesIO()
    figure.savefig(picture, dpi=120)
    write_atomically(path, picture.getvalue())
