"""The keys of the tables and images that runs send to W&B, and the charts of the tables."""

from dataclasses import dataclass

AUGMENTED = "augmented_images"
HARDEST = "hardest_images"

#: Accuracies that the papers claim, by architecture. SAMResNet's come from Kaggle's hidden test set
#: and are not comparable with validation accuracies; the key says so in every chart.
CLAIMS: dict[str, dict[str, float]] = {
    "enhanced_efficient_resnet": {"claim/val_acc": 0.9530},
    "sam_resnet": {"claim/kaggle_test_acc_not_comparable": 0.9299},
    "resnet": {"claim/kaggle_test_acc_not_comparable": 0.9143},
}


@dataclass(frozen=True)
class Chart:
    """A table that a run sends, and its chart: W&B's design, a column per field."""

    key: str
    title: str
    design: str
    fields: dict[str, str]

    @property
    def table(self) -> str:
        """The key under which W&B keeps the table."""
        return f"{self.key}_table"


CONFUSION = Chart(
    "confusion_matrix",
    "Test images of each class, by the class they were taken for",
    "wandb/confusion_matrix/v1",
    {"Actual": "actual", "Predicted": "predicted", "nPredictions": "images"},
)
CALIBRATION = Chart(
    "calibration",
    "Accuracy on the test set by confidence: below the diagonal, too sure",
    "wandb/line/v0",
    {"x": "confidence", "y": "accuracy", "stroke": "weights"},
)
STRATEGIES = Chart(
    "strategies",
    "Gain over plain inference on the test set, in points",
    "wandb/bar/v0",
    {"label": "strategy", "value": "test_gain"},
)
