"""Hardest images and reliability, compared with results by hand and torchmetrics."""

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from experiments.inference.analysis import hardest, reliability, wilson_interval


def predictions(count: int = 3_000, sharpness: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 10, generator=generator) * sharpness
    return logits, torch.randint(10, (count,), generator=generator)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_bins_equal_the_counts_of_a_loop_over_predictions(temperature: float, bins: int) -> None:
    logits, labels = predictions(500)
    found = reliability(logits, labels, temperature, bins)
    confidence, predicted = (logits / temperature).softmax(1).max(1)
    for i in range(bins):
        last = i == bins - 1
        inside = [
            j
            for j, p in enumerate(confidence.tolist())
            if i / bins <= p and (p < (i + 1) / bins or last)
        ]
        assert found.counts[i] == len(inside)
        if inside:
            assert found.confidence[i] == pytest.approx(confidence[inside].mean().item(), abs=1e-6)
            right = (predicted[inside] == labels[inside]).double().mean().item()
            assert found.accuracy[i] == pytest.approx(right)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_ece_equals_torchmetrics(temperature: float) -> None:
    logits, labels = predictions()
    theirs = multiclass_calibration_error(
        (logits.double() / temperature).softmax(1), labels, 10, n_bins=15, norm="l1"
    )
    assert reliability(logits, labels, temperature).ece == pytest.approx(theirs.item(), abs=1e-6)


def test_correct_confidence_has_no_error() -> None:
    # Three of four predictions at confidence 3/4 are right, and one of one at confidence 1.
    logits = torch.tensor([[0.75, 0.25]] * 4 + [[1.0, 0.0]]).clamp(min=1e-30).log()
    found = reliability(logits, torch.tensor([0, 0, 0, 1, 0]), bins=10)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 0, 0, 4, 0, 1]
    assert found.ece == pytest.approx(0, abs=1e-6)
    assert len(reliability(logits, torch.tensor([0, 0, 0, 1, 0])).counts) == 15


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (3, 10), (10, 10), (831, 1000)])
def test_intervals_of_shares_are_scipys(right: int, count: int) -> None:
    low, high = wilson_interval(torch.tensor(right / count).double(), torch.tensor(count))
    theirs = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert (low.item(), high.item()) == pytest.approx((theirs.low, theirs.high), abs=1e-4)


def test_the_hardest_image_has_the_least_probability_of_its_class() -> None:
    probabilities = torch.tensor([[0.90, 0.10], [0.02, 0.98], [0.30, 0.70], [0.60, 0.40]])
    labels = torch.tensor([0, 0, 0, 1])
    # A shift of all logits of an image changes nothing.
    logits = probabilities.log() + torch.tensor([[5.0], [9.0], [-3.0], [0.0]])
    assert hardest(logits, labels, 3).tolist() == [1, 2, 3]
    assert hardest(logits, labels, 9).tolist() == [1, 2, 3, 0]
