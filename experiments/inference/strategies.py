"""The ways of predicting with a finished run, by name: which weights see which views."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.prediction import (
    FLIP,
    IDENTITY,
    SAM_VIEWS,
    SIX_VIEWS,
    TTA,
    Average,
    Ensemble,
    TemperatureScaled,
    average_predictions,
    is_unsure,
    log_probabilities,
)

#: network -> view -> log-probabilities float32 (N, 10)
Seen = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Strategy:
    """One way of predicting: data that `build` makes a module of."""

    networks: Mapping[str, float]  # a run's weights ("raw", "ema", "swa"), and how much they count
    views: Mapping[str, float]  # what each of them sees, and how much that counts
    average: Average = "logits"  # what is averaged, over views and over networks
    temperature: float = 1.0  # divides the averaged logits
    threshold: float | None = None  # from which share of the two likeliest a view stands alone
    claim: float | None = None  # accuracy in SAMResNet's Figure 1

    def build(self, networks: Mapping[str, nn.Module], mean: Tensor, std: Tensor) -> nn.Module:
        """Normalised images to log-probabilities, around networks with the names that it needs."""
        members = [
            TTA(networks[name], self.views, mean, std, self.average, self.threshold)
            for name in self.networks
        ]
        ensemble = Ensemble(members, list(self.networks.values()), self.average)
        return TemperatureScaled(ensemble, self.temperature).to(mean.device)

    def predict(self, seen: Seen) -> Tensor:
        """What the built module would answer, from its networks' answers to every view.

        Strategies share most of what they look at: looked at once, it serves all of them.
        """
        members = torch.stack([self._average_views(seen[name]) for name in self.networks])
        weights = torch.tensor(list(self.networks.values()))
        return log_probabilities(
            average_predictions(members, weights, self.average), self.temperature
        )

    def _average_views(self, seen: Mapping[str, Tensor]) -> Tensor:
        predictions = torch.stack([seen[view] for view in self.views])
        weights = torch.tensor(list(self.views.values()))
        averaged = average_predictions(predictions, weights, self.average)
        if self.threshold is None:
            return averaged
        first = predictions[0]
        return torch.where(is_unsure(first, self.threshold)[:, None], averaged, first)


RAW, EMA, SWA = {"raw": 1.0}, {"ema": 1.0}, {"swa": 1.0}
BOTH = {"raw": 0.4, "ema": 0.6}  # SAMResNet's shares

#: what gains are measured against
PLAIN = "plain"

# The five with a claim are SAMResNet's Figure 1, as its code has them: logits are averaged, and TTA
# comes with a temperature of 1.2, which therefore decides no class.
STRATEGIES: dict[str, Strategy] = {
    PLAIN: Strategy(RAW, IDENTITY, claim=0.9256),
    "flip": Strategy(RAW, FLIP),
    "tta": Strategy(RAW, SAM_VIEWS, temperature=1.2, claim=0.9287),
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
#: in the order of the figure's bars
FIGURE_1 = (PLAIN, "tta", "ensemble", "tta+ensemble", "ema+tta")


def strategies_for(weights: Iterable[str]) -> dict[str, Strategy]:
    """Every strategy that the weights of a run allow."""
    weights = set(weights)
    return {name: s for name, s in STRATEGIES.items() if set(s.networks) <= weights}


def joint_strategies(networks: Iterable[str]) -> dict[str, Strategy]:
    """Each of several runs' networks by itself, and all of them together."""
    together = dict.fromkeys(networks, 1.0)
    return {name: Strategy({name: 1.0}, IDENTITY) for name in together} | {
        "ensemble": Strategy(together, IDENTITY, average="probabilities"),
        "ensemble of logits": Strategy(together, IDENTITY),
        "flip+ensemble": Strategy(together, FLIP, average="probabilities"),
        "six-view+ensemble": Strategy(together, SIX_VIEWS, average="probabilities"),
    }
