"""A limit on the number of trainable parameters, checked before the first batch."""

from typing import Literal, Protocol, cast, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn


class HasNetwork(Protocol):
    """What ParameterBudget asks of a LightningModule.

    A module may also have `fitting_widths(budget: int) -> str | None`: which smaller networks would
    fit, in words, or None where none does.
    """

    network: nn.Module


def count_trainable(network: nn.Module) -> int:
    """Number of trainable parameters; one that is shared counts once."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@final
class ParameterBudget(Callback):
    """Refuses to train a network with more trainable parameters than the budget, or warns.

    MisconfigurationException, in one line, says count, budget, excess and what would fit. Count and
    utilisation are logged once as the hyper-parameters `parameters` and `budget_used`: they belong
    to the run and not to a step, so they are no row among the metrics.
    """

    def __init__(
        self, limit: int = 5_000_000, action: Literal["refuse", "warn"] = "refuse"
    ) -> None:
        """
        Args:
            limit: largest number of trainable parameters.
            action: refuse to train a network over the limit, or warn and train it.
        """
        if limit < 1:
            raise ValueError(f"limit must be 1 or more, got {limit}")
        if action not in ("refuse", "warn"):
            raise ValueError(f"action must be 'refuse' or 'warn', got {action!r}")
        self.limit = limit
        self.action = action

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        count = count_trainable(cast(HasNetwork, pl_module).network)
        if stage != "fit" or count <= self.limit:
            return
        message = (
            f"{count:,} trainable parameters exceed the budget of {self.limit:,} "
            f"by {count - self.limit:,}"
        )
        fitting_widths = getattr(pl_module, "fitting_widths", None)
        if fitting_widths is not None and (fitting := fitting_widths(self.limit)):
            message += f"; {fitting}"
        if self.action == "refuse":
            raise MisconfigurationException(message)
        rank_zero_warn(message)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        count = count_trainable(cast(HasNetwork, pl_module).network)
        for logger in trainer.loggers:
            logger.log_hyperparams({"parameters": count, "budget_used": count / self.limit})
