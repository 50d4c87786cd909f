from math import log

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.losses import jensen_shannon


def of_the_paper(logits_clean, logits_1, logits_2):
    """Section 3 of Hendrycks et al. (2020): the mean of three divergences from the mixture."""
    views = [F.softmax(x, dim=1) for x in (logits_clean, logits_1, logits_2)]
    mixture = (sum(views) / 3).log()
    return sum(F.kl_div(mixture, p, reduction="batchmean") for p in views) / 3


def test_value_and_gradient_equal_the_papers_formula():
    logits = 3 * torch.randn(3, 16, 10, generator=torch.Generator().manual_seed(0))
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss, expected = jensen_shannon(*ours), of_the_paper(*theirs)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_it_equals_a_computation_by_hand():
    # The mean of (1/2, 1/2), (1/2, 1/2) and (4/5, 1/5) is (3/5, 2/5).
    half, sure = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.8, 0.2]]).log()
    even = 0.5 * log(0.5 / 0.6) + 0.5 * log(0.5 / 0.4)
    expected = (2 * even + 0.8 * log(0.8 / 0.6) + 0.2 * log(0.2 / 0.4)) / 3
    assert jensen_shannon(half, half, sure).item() == pytest.approx(expected, abs=1e-6)
    assert jensen_shannon(sure, half, half).item() == pytest.approx(expected, abs=1e-6)


def test_it_is_0_for_equal_and_log_3_for_disjoint_predictions():
    logits = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    assert jensen_shannon(logits, logits + 7, logits).item() == pytest.approx(0, abs=1e-6)
    sure = 1e4 * torch.eye(3).unsqueeze(1).requires_grad_()
    loss = jensen_shannon(*sure)
    assert loss.item() == pytest.approx(log(3))
    assert torch.autograd.grad(loss, sure)[0].isfinite().all()


def test_it_is_computed_in_32_bits_for_logits_of_any_type():
    logits = torch.randn(3, 8, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = jensen_shannon(*logits)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, jensen_shannon(*logits.float()))
