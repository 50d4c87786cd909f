import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, OneCycleLR

from lightning_modules.optimizers import learning_rate_factor, parameter_groups

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
    # It peaks at 0.4 of 200 steps.
    corners = [0.2 * 0.1, 0.1, 0.07 * 0.1]
    assert ours("triangular") == pytest.approx(np.interp(range(STEPS), [0, 80, 200], corners))


def test_samresnets_warmup_lies_over_a_cycle_that_runs_from_the_first_step() -> None:
    with_warmup, cycle = ours("warmup_onecycle", warmup=0.05), ours("onecycle")
    # 10 of 200 steps from 0.001 to 0.1 in a line, then the cycle as if there had been no warm-up.
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
    # LambdaLR asks for the step behind the last one too.
    assert all(0 <= factor(step) <= 1 for step in range(total + 1))


@pytest.mark.parametrize("decay_norm_bias", [True, False])
def test_every_parameter_is_in_one_group_with_its_decay(decay_norm_bias: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    groups = parameter_groups(network, 5e-4, decay_norm_bias)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(network.parameters()))
    for parameter in network.parameters():
        decayed = decay_norm_bias or parameter.ndim > 1
        assert decay[id(parameter)] == (5e-4 if decayed else 0.0)


def test_frozen_parameters_are_left_out() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    groups = parameter_groups(network, 5e-4, decay_norm_bias=False)
    assert [p for group in groups for p in group["params"]] == list(network[1].parameters())
