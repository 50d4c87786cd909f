"""Strategies are data: the predictors that they build, and SAMResNet's claims about five."""

import pytest
import torch
from torch import Tensor, nn

from experiments.inference.strategies import (
    FIGURE_1,
    LADDER,
    PLAIN,
    STRATEGIES,
    Strategy,
    first_views,
    joint_strategies,
    strategies_for,
)
from lightning_modules.prediction import log_probabilities, see
from lightning_modules.views import FLIP, IDENTITY, SAM_LADDER, SAM_VIEWS, SIX_VIEWS

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.25, 0.2, 0.3])
JOINT = joint_strategies(["a:raw", "b:ema", "c:swa"])


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    linear = nn.Linear(3 * 8 * 8, 10)
    linear.weight.data *= 3
    return nn.Sequential(nn.Flatten(), linear).eval().requires_grad_(False)


def images() -> Tensor:
    return torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "strategy", [*STRATEGIES.values(), *JOINT.values()], ids=[*STRATEGIES, *JOINT]
)
def test_shared_views_equal_the_built_module(strategy: Strategy) -> None:
    networks = {name: network(seed) for seed, name in enumerate(strategy.networks)}
    seen = {
        name: {
            view: log_probabilities(net(see(images(), view, MEAN, STD))) for view in strategy.views
        }
        for name, net in networks.items()
    }
    answer = strategy.build(networks, MEAN, STD)(images())
    assert answer.shape == (32, 10)
    torch.testing.assert_close(strategy.predict(seen), answer)


def test_the_plain_strategy_is_the_raw_network() -> None:
    answer = STRATEGIES[PLAIN].build({"raw": network(0)}, MEAN, STD)(images())
    torch.testing.assert_close(answer, network(0)(images()).log_softmax(1))


def test_figure_1_has_the_five_bars_of_the_paper() -> None:
    claims = {name: STRATEGIES[name].claim for name in FIGURE_1}
    assert claims == {
        "plain": 0.9256,
        "tta": 0.9287,
        "ensemble": 0.9272,
        "tta+ensemble": 0.9299,
        "ema+tta": 0.9294,
    }
    assert {name for name, strategy in STRATEGIES.items() if strategy.claim} == set(FIGURE_1)


def test_the_papers_bars_share_one_set_of_views_and_shares() -> None:
    both = STRATEGIES["tta+ensemble"]
    assert both.networks == STRATEGIES["ensemble"].networks == {"raw": 0.4, "ema": 0.6}
    assert both.views == STRATEGIES["tta"].views == STRATEGIES["ema+tta"].views
    assert both.views["identity"] == 1.5
    assert both.temperature == 1.2


@pytest.mark.parametrize(
    ("weights", "absent"),
    [(["raw"], {"ema", "swa"}), (["raw", "ema"], {"swa"}), (["raw", "swa"], {"ema"})],
)
def test_a_run_gets_the_strategies_that_its_weights_allow(
    weights: list[str], absent: set[str]
) -> None:
    allowed = strategies_for(weights)
    assert PLAIN in allowed
    for name, strategy in STRATEGIES.items():
        assert (name in allowed) == (not absent & set(strategy.networks))


def test_each_strategy_has_the_weights_and_views_of_its_name() -> None:
    of_a_run = ["flip", "tta", "six-view", "adaptive", "ensemble"]
    names = [PLAIN, *of_a_run, "tta+ensemble", "six-view+ensemble", "ema", "swa", "ema+tta"]
    names += ["ema+flip", "ema+six-view", "ema+adaptive", "swa+flip", "swa+six-view"]
    names += ["tta-4", "tta-8", "tta-12"]
    assert sorted(STRATEGIES) == sorted(names)
    views = {"flip": FLIP, "tta": SAM_VIEWS, "six-view": SIX_VIEWS, "adaptive": SIX_VIEWS}
    views |= {f"tta-{n}": dict(list(SAM_LADDER.items())[:n]) for n in (4, 8, 12)}
    networks = {"ema": {"ema": 1}, "swa": {"swa": 1}, "ensemble": {"raw": 0.4, "ema": 0.6}}
    for name, strategy in STRATEGIES.items():
        words = name.split("+")
        assert strategy == Strategy(
            networks=next((networks[x] for x in words if x in networks), {"raw": 1}),
            views=next((views[x] for x in words if x in views), IDENTITY),
            average="probabilities" if name == "six-view+ensemble" else "logits",
            temperature=1.2 if "tta" in name else 1,
            threshold=0.85 if "adaptive" in words else None,
            claim=strategy.claim,
        )


def test_the_ladder_has_strategies_with_so_many_views() -> None:
    assert list(LADDER) == [1, 2, 4, 6, 8, 12]
    for count, name in LADDER.items():
        assert len(STRATEGIES[name].views) == count
    assert all(STRATEGIES[LADDER[count]] == first_views(count) for count in (4, 8, 12))


def test_joint_strategies_combine_their_named_parts() -> None:
    together = {"a": 1, "b": 1}
    assert joint_strategies(["a", "b"]) == {
        "a": Strategy({"a": 1}, IDENTITY),
        "b": Strategy({"b": 1}, IDENTITY),
        "ensemble": Strategy(together, IDENTITY, "probabilities"),
        "ensemble of logits": Strategy(together, IDENTITY),
        "flip+ensemble": Strategy(together, FLIP, "probabilities"),
        "six-view+ensemble": Strategy(together, SIX_VIEWS, "probabilities"),
    }


def test_runs_together_are_each_network_alone_and_equal_shares_of_all() -> None:
    assert JOINT["b:ema"] == Strategy({"b:ema": 1.0}, IDENTITY)
    networks = {name: network(seed) for seed, name in enumerate(("a:raw", "b:ema", "c:swa"))}
    mean = torch.stack([net(images()).softmax(1) for net in networks.values()]).mean(0)
    answer = JOINT["ensemble"].build(networks, MEAN, STD)(images())
    torch.testing.assert_close(answer.exp(), mean)
