"""Lookahead: slow weights that follow the optimizer's (Zhang et al. 2019)."""

from typing import Any, Literal, Protocol, cast, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer


class HasNetwork(Protocol):
    """A LightningModule with a network."""

    network: nn.Module


@torch.no_grad()
def lookahead_sync(fast: list[Tensor], slow: list[Tensor], alpha: float) -> None:
    """Set slow to slow + alpha * (fast - slow), and fast to the same, in place."""
    torch._foreach_lerp_(slow, fast, alpha)
    torch._foreach_copy_(fast, slow)


def cubic_share(progress: float, end: float) -> float:
    """Return a share that falls from 1 at `progress` 0 to `end` at `progress` 1."""
    return 1 - (1 - end) * progress**3


@final
class Lookahead(Callback):
    """Moves the weights towards slow weights every k steps (Zhang et al. 2019).

    The cubic schedule is the EMA-like variant of Jordan (2024): the share falls from 1, which
    changes nothing, to `alpha`.
    """

    def __init__(
        self, k: int = 5, alpha: float = 0.5, schedule: Literal["constant", "cubic"] = "constant"
    ) -> None:
        """
        Args:
            k: optimizer steps between two synchronisations.
            alpha: share of the way from the slow to the fast weights in a synchronisation.
            schedule: keep the share constant, or let it fall from 1 to alpha over training.
        """
        if k < 1:
            raise ValueError(f"k must be 1 or more, got {k}")
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be in (0, 1], got {alpha}")
        if schedule not in ("constant", "cubic"):
            raise ValueError(f"schedule must be 'constant' or 'cubic', got {schedule!r}")
        self.k = k
        self.alpha = alpha
        self.schedule = schedule
        self.steps = 0
        self._total_steps = 0
        self._fast: list[Tensor] = []
        self._slow: dict[str, Tensor] = {}
        self._restored: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = cast(HasNetwork, pl_module).network
        # A module may freeze a parameter during training, before a rollback restores it.
        known, named = self._restored.get("slow", {}), network.named_parameters()
        trained = {name: p for name, p in named if p.requires_grad or name in known}
        self._fast = list(trained.values())
        self._slow = {name: p.detach().clone() for name, p in trained.items()}
        self.steps = 0
        if self._restored:
            self.steps = self._restored["steps"]
            for name, slow in self._slow.items():
                slow.copy_(self._restored["slow"][name])
            self._restored = {}
        if self.schedule == "cubic":
            self._total_steps = int(trainer.estimated_stepping_batches)
        self._hook = trainer.optimizers[0].register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.steps += 1
        if self.steps % self.k == 0:
            alpha = self.alpha
            if self.schedule == "cubic":
                alpha = cubic_share(self.steps / self._total_steps, self.alpha)
            lookahead_sync(self._fast, list(self._slow.values()), alpha)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook.remove()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "slow": self._slow} if self._slow else self._restored

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Used when training starts: the network is not on its device yet, and has no optimizer.
        self._restored = state_dict
