import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from experiments.reporting.mistakes import confusion, hardest


def test_confusion_counts_labels_in_rows_and_predictions_in_columns() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 10, generator=generator)
    labels = torch.randint(10, (400,), generator=generator)
    theirs = multiclass_confusion_matrix(logits.argmax(1), labels, 10)
    assert torch.equal(confusion(logits, labels), theirs)


def test_the_hardest_image_gives_its_own_class_the_least_probability() -> None:
    probabilities = torch.tensor([[0.90, 0.10], [0.02, 0.98], [0.30, 0.70], [0.60, 0.40]])
    labels = torch.tensor([0, 0, 0, 1])
    # Logits may be shifted by anything in each row.
    logits = probabilities.log() + torch.tensor([[5.0], [9.0], [-3.0], [0.0]])
    assert hardest(logits, labels, 3).tolist() == [1, 2, 3]
    assert hardest(logits, labels, 9).tolist() == [1, 2, 3, 0]
