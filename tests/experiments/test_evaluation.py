import math

import pytest
import torch

from experiments.inference.evaluation import score
from experiments.inference.finished import Weights, load_weights

WEIGHTS = Weights("ema", {}, "best_ema.ckpt", 7)


def test_scores_equal_a_hand_made_case():
    # Only two classes have probability: a margin of log(3) gives 3 / 4.
    right, wrong = math.log(3), -math.log(3)
    logits = torch.full((4, 10), -torch.inf)
    logits[:, 0] = torch.tensor([right, right, right, wrong])
    logits[:, 1] = 0.0
    labels = torch.zeros(4, dtype=torch.int64)
    result = score(logits, labels, WEIGHTS)
    assert result.accuracy == 0.75
    assert result.nll == pytest.approx(-(3 * math.log(3 / 4) + math.log(1 / 4)) / 4)
    # All confidences and the accuracy are 3 / 4: the calibration is perfect.
    assert result.ece == pytest.approx(0, abs=1e-6)
    assert (result.images, result.checkpoint, result.epoch) == (4, "best_ema.ckpt", 7)


def test_calibration_is_the_weighted_gap_of_fifteen_bins():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 10, generator=generator) * 2
    labels = torch.randint(10, (500,), generator=generator)
    confidence, predicted = logits.softmax(1).max(1)
    right = (predicted == labels).float()
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            gap = (right[inside].mean() - confidence[inside].mean()).abs()
            expected += float(gap) * inside.float().mean().item()
    result = score(logits, labels, WEIGHTS)
    assert result.ece == pytest.approx(expected, abs=1e-6)
    assert result.accuracy == int(right.sum()) / 500


@pytest.fixture
def folder(tmp_path):
    """A run; its best raw and averaged weights are 1 and 2, the last ones are 3 and 4."""
    for name, weight, epoch in (("best", 1, 1), ("best_ema", 2, 2), ("last", 3, 7)):
        state = {"network.weight": torch.tensor(weight), "metric": torch.tensor(9)}
        checkpoint = {"epoch": epoch, "state_dict": state}
        if name == "last":
            average = {"updates": 5, "average": {"weight": torch.tensor(4)}}
            checkpoint["callbacks"] = {"EMA": average}
        torch.save(checkpoint, tmp_path / f"{name}.ckpt")
    return tmp_path


def test_each_kind_of_weights_comes_from_its_own_best_checkpoint(folder):
    assert load_weights(folder, "raw") == Weights("raw", {"weight": 1}, "best.ckpt", 2)
    assert load_weights(folder, "ema") == Weights("ema", {"weight": 2}, "best_ema.ckpt", 3)


def test_without_a_best_one_the_last_is_taken(folder):
    (folder / "best.ckpt").unlink()
    (folder / "best_ema.ckpt").unlink()
    assert load_weights(folder, "raw") == Weights("raw", {"weight": 3}, "last.ckpt", 8)
    assert load_weights(folder, "ema") == Weights("ema", {"weight": 4}, "last.ckpt", 8)


@pytest.mark.parametrize("state", [{}, {"updates": 0, "average": {"weight": torch.tensor(1.0)}}])
def test_an_average_without_updates_is_none(tmp_path, state):
    checkpoint = {"epoch": 0, "state_dict": {}, "callbacks": {"EMA": state}}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert load_weights(tmp_path, "ema") is None
    assert load_weights(tmp_path, "swa") is None
