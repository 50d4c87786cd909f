"""A limit on the number of trainable parameters, checked before the first batch."""

from typing import Literal, cast, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from callbacks.lookahead import HasNetwork


def count_trainable(network: nn.Module) -> int:
    """Return the number of trainable parameters; a shared parameter counts once."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@final
class ParameterBudget(Callback):
    """Limits the number of trainable parameters.

    It logs the number and its share of the limit as `parameters` and `budget_used`.
    """

    def __init__(
        self, limit: int = 5_000_000, action: Literal["refuse", "warn"] = "refuse"
    ) -> None:
        """
        Args:
            limit: maximum number of trainable parameters.
            action: refuse to train a larger network, or warn and train it.
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
        # Describes a smaller network within the budget, or returns None.
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
