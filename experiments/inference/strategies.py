"""Strategies of prediction: weights, views and temperature. Needs no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_modules.views import FLIP, IDENTITY, SAM_LADDER, SAM_VIEWS, SIX_VIEWS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lightning_modules.prediction import Average

#: network -> view -> log-probabilities float32 (N, 10)
Seen = Mapping[str, Mapping[str, "Tensor"]]


@dataclass(frozen=True)
class Strategy:
    """One way of predicting."""

    networks: Mapping[str, float]  # a run's weights ("raw", "ema", "swa"), and their shares
    views: Mapping[str, float]  # that each network sees, and their shares
    average: "Average" = "logits"  # over views and over networks
    temperature: float = 1.0  # divides the averaged logits
    threshold: float | None = None  # of `lightning_modules.prediction.TTA`
    claim: float | None = None  # accuracy in SAMResNet's Figure 1

    def build(
        self, networks: Mapping[str, "nn.Module"], mean: "Tensor", std: "Tensor"
    ) -> "nn.Module":
        """Build a module that maps normalised images to log-probabilities."""
        from lightning_modules.prediction import TTA, Ensemble, TemperatureScaled

        members = [
            TTA(networks[name], self.views, mean, std, self.average, self.threshold)
            for name in self.networks
        ]
        ensemble = Ensemble(members, list(self.networks.values()), self.average)
        return TemperatureScaled(ensemble, self.temperature).to(mean.device)

    def predict(self, seen: Seen) -> "Tensor":
        """Compute the output of the built module from predictions for each view.

        All strategies can share the predictions for a view.
        """
        from lightning_modules.prediction import log_probabilities

        members = [self._average_views(seen[name]) for name in self.networks]
        averaged = self._average(members, self.networks)
        return log_probabilities(averaged, self.temperature)

    def _average_views(self, seen: Mapping[str, "Tensor"]) -> "Tensor":
        from lightning_modules.prediction import is_unsure

        predictions = [seen[view] for view in self.views]
        averaged, first = self._average(predictions, self.views), predictions[0]
        if self.threshold is None:
            return averaged
        return averaged.where(is_unsure(first, self.threshold)[:, None], first)

    def _average(self, predictions: Sequence["Tensor"], weights: Mapping[str, float]) -> "Tensor":
        import torch

        from lightning_modules.prediction import average_predictions

        shares = torch.tensor(list(weights.values()))
        return average_predictions(torch.stack(list(predictions)), shares, self.average)


RAW, EMA, SWA = {"raw": 1.0}, {"ema": 1.0}, {"swa": 1.0}
BOTH = {"raw": 0.4, "ema": 0.6}  # SAMResNet's shares

#: the baseline of gains
PLAIN = "plain"


def first_views(count: int) -> Strategy:
    """SAMResNet's test-time augmentation with its first `count` of twelve views."""
    views = dict(list(SAM_LADDER.items())[:count])
    return Strategy(RAW, views, temperature=1.2)


# The five strategies with a claim are SAMResNet's Figure 1, as in its code: logits are averaged.
# TTA has a temperature of 1.2, which changes no predicted class.
STRATEGIES: dict[str, Strategy] = {
    PLAIN: Strategy(RAW, IDENTITY, claim=0.9256),
    "flip": Strategy(RAW, FLIP),
    "tta": Strategy(RAW, SAM_VIEWS, temperature=1.2, claim=0.9287),
    "tta-4": first_views(4),
    "tta-8": first_views(8),
    "tta-12": first_views(12),
    "six-view": Strategy(RAW, SIX_VIEWS),
    "adaptive": Strategy(RAW, SIX_VIEWS, threshold=0.85),
    "ema": Strategy(EMA, IDENTITY),
    "ema+flip": Strategy(EMA, FLIP),
    "ema+tta": Strategy(EMA, SAM_VIEWS, temperature=1.2, claim=0.9294),
    "ema+six-view": Strategy(EMA, SIX_VIEWS),
    "ema+adaptive": Strategy(EMA, SIX_VIEWS, threshold=0.85),
    "swa": Strategy(SWA, IDENTITY),
    "swa+flip": Strategy(SWA, FLIP),
    "swa+six-view": Strategy(SWA, SIX_VIEWS),
    "ensemble": Strategy(BOTH, IDENTITY, claim=0.9272),
    "tta+ensemble": Strategy(BOTH, SAM_VIEWS, temperature=1.2, claim=0.9299),
    "six-view+ensemble": Strategy(BOTH, SIX_VIEWS, average="probabilities"),
}
#: number of views -> the strategy with so many of SAMResNet's views
LADDER = {1: PLAIN, 2: "flip", 4: "tta-4", 6: "tta", 8: "tta-8", 12: "tta-12"}
#: in the order of the figure
FIGURE_1 = (PLAIN, "tta", "ensemble", "tta+ensemble", "ema+tta")


def strategies_for(weights: Iterable[str]) -> dict[str, Strategy]:
    """Return the strategies that need only these weights."""
    weights = set(weights)
    return {name: s for name, s in STRATEGIES.items() if set(s.networks) <= weights}


def joint_strategies(networks: Iterable[str]) -> dict[str, Strategy]:
    """Return strategies for networks of several runs: each alone, and all together."""
    together = dict.fromkeys(networks, 1.0)
    return {name: Strategy({name: 1.0}, IDENTITY) for name in together} | {
        "ensemble": Strategy(together, IDENTITY, average="probabilities"),
        "ensemble of logits": Strategy(together, IDENTITY),
        "flip+ensemble": Strategy(together, FLIP, average="probabilities"),
        "six-view+ensemble": Strategy(together, SIX_VIEWS, average="probabilities"),
    }
