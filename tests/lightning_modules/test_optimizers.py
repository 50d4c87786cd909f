import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, OneCycleLR

from lightning_modules.optimizers import (
    batch_norm_shifts,
    clip_gradients,
    learning_rate_factor,
    make_optimizer,
    parameter_groups,
    refuse_fused,
)

STEPS = 200


def rates(scheduler: object, optimizer: torch.optim.Optimizer) -> list[float]:
    values = []
    for _ in range(STEPS):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()  # type: ignore[attr-defined]
    return values


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)


def factor_of(schedule: str, total_steps: int, warmup: float) -> Callable[[int], float]:
    hparams = {
        "schedule": schedule, "rising": 0.4, "warmup": warmup, "warmup_lr": 0.001, "lr": 0.1,
        "milestones": (0.3, 0.6, 0.8), "gamma": 0.2, "triangle": (0.2, 0.07),
    }  # fmt: skip
    return learning_rate_factor(hparams, total_steps)


def ours(schedule: str, warmup: float = 0.0) -> list[float]:
    optimizer = sgd()
    return rates(LambdaLR(optimizer, factor_of(schedule, STEPS, warmup)), optimizer)


def test_cosine_is_torchs() -> None:
    optimizer = sgd()
    expected = rates(CosineAnnealingLR(optimizer, STEPS), optimizer)
    assert ours("cosine") == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_step_schedule_is_torchs() -> None:
    optimizer = sgd()
    expected = rates(MultiStepLR(optimizer, milestones=[60, 120, 160], gamma=0.2), optimizer)
    assert ours("step") == pytest.approx(expected, rel=1e-9)
    assert len(set(expected)) == 4


def test_onecycle_is_torchs() -> None:
    optimizer = sgd()
    scheduler = OneCycleLR(optimizer, 0.1, total_steps=STEPS, pct_start=0.4, cycle_momentum=False)
    expected = []
    for step in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < STEPS - 1:
            scheduler.step()
    assert ours("onecycle") == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_triangle_is_two_lines() -> None:
    # The maximum is at 0.4 of 200 steps.
    corners = [0.2 * 0.1, 0.1, 0.07 * 0.1]
    assert ours("triangular") == pytest.approx(np.interp(range(STEPS), [0, 80, 200], corners))


def test_samresnets_warmup_is_part_of_a_cycle_from_the_first_step() -> None:
    with_warmup, cycle = ours("warmup_onecycle", warmup=0.05), ours("onecycle")
    # 10 of 200 steps are linear from 0.001 to 0.1. Then the rate equals the cycle alone.
    assert with_warmup[:10] == pytest.approx([0.001 + 0.099 * i / 10 for i in range(10)])
    assert with_warmup[10:] == cycle[10:]
    assert max(range(STEPS), key=with_warmup.__getitem__) == 79


def test_cosine_after_a_warmup_spans_the_remaining_steps() -> None:
    values = ours("cosine", warmup=0.1)
    assert values[0] == pytest.approx(0.001)
    assert values[20] == pytest.approx(0.1)
    assert values[110] == pytest.approx(0.1 * (1 + math.cos(math.pi / 2)) / 2)


@pytest.mark.parametrize(
    "schedule", ["cosine", "onecycle", "warmup_onecycle", "step", "triangular"]
)
@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_schedule_of_a_few_steps_has_finite_rates(schedule: str, total: int) -> None:
    factor = factor_of(schedule, total, warmup=0.05)
    # LambdaLR also asks for the step after the last one.
    assert all(0 <= factor(step) <= 1 for step in range(total + 1))


@pytest.mark.parametrize(
    ("schedule", "end"), [("cosine", 0.0), ("onecycle", 1 / 25 / 1e4), ("triangular", 0.07)]
)
@pytest.mark.parametrize("total", [1, 200])
def test_after_its_end_a_schedule_stays_there(schedule: str, end: float, total: int) -> None:
    factor = factor_of(schedule, total, warmup=0.0)
    assert [factor(total + more) for more in (0, 30)] == pytest.approx([end, end])


def test_a_fused_optimizer_is_refused_in_fp16_only() -> None:
    refuse_fused("bf16-mixed")
    with pytest.raises(MisconfigurationException, match="fused must be False in 16-mixed"):
        refuse_fused("16-mixed")


@pytest.mark.parametrize("decay_norm_bias", [True, False])
def test_every_parameter_is_in_one_group_with_its_decay(decay_norm_bias: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    groups = parameter_groups(network, 5e-4, decay_norm_bias)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(network.parameters()))
    for parameter in network.parameters():
        decayed = decay_norm_bias or parameter.ndim > 1
        assert decay[id(parameter)] == (5e-4 if decayed else 0.0)


HPARAMS = {
    "lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 5e-4, "decay_norm_bias": True,
    "bias_lr_factor": 1.0, "optimizer": "sgd", "fused": False,
}  # fmt: skip


def test_sgd_has_the_hyper_parameters() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for fused in (False, True):
        optimizer = make_optimizer(network, HPARAMS | {"fused": fused})
        assert type(optimizer) is torch.optim.SGD
        (group,) = optimizer.param_groups
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.1, 0.8, True)
        assert (group["weight_decay"], bool(group["fused"])) == (5e-4, fused)


@pytest.mark.parametrize(("decay_norm_bias", "decay"), [(True, 5e-4 / 4), (False, 0.0)])
def test_shifts_of_batch_norm_have_their_rate_and_decay(
    decay_norm_bias: bool, decay: float
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False))
    hparams = HPARAMS | {"bias_lr_factor": 4.0, "decay_norm_bias": decay_norm_bias}
    *others, shifts = make_optimizer(network, hparams).param_groups
    assert shifts["params"] == batch_norm_shifts(network) == [network[1].bias]
    assert (shifts["lr"], shifts["weight_decay"]) == (0.4, decay)
    assert {group["lr"] for group in others} == {0.1}


@pytest.mark.parametrize(
    ("limit", "algorithm", "wants_norm", "norm", "clipped"),
    [
        (None, None, False, None, [3.0, -4.0]),
        (None, None, True, 5.0, [3.0, -4.0]),
        (1.0, None, False, 5.0, [0.6, -0.8]),
        (1.0, "norm", True, 5.0, [0.6, -0.8]),
        (3.5, "value", False, None, [3.0, -3.5]),
        (3.5, "value", True, 5.0, [3.0, -3.5]),
    ],
)
def test_gradients_are_clipped_and_their_norm_is_from_before(
    limit: float | None, algorithm: str | None, wants_norm: bool, norm: object, clipped: list[float]
) -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]  # the last has no gradient
    for p, gradient in zip(parameters, (3.0, -4.0), strict=False):
        p.grad = torch.tensor([gradient])
    optimizer = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:]}], lr=0.1)
    found = clip_gradients(optimizer, limit, algorithm, wants_norm)
    assert (found if found is None else found.item()) == norm
    assert [p.grad.item() for p in parameters[:2] if p.grad is not None] == pytest.approx(clipped)


def test_frozen_parameters_are_left_out() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    groups = parameter_groups(network, 5e-4, decay_norm_bias=False)
    assert [p for group in groups for p in group["params"]] == list(network[1].parameters())
