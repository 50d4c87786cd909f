"""Count the operations of a training; a multiply-add is two."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

from experiments.console import UserError
from experiments.records.record import write_atomically

#: in the run's folder
FILE = "operations.json"

Kind = tuple[Any, ...]


@final
class CountOperations(Callback):
    """Counts a training's operations and writes the run's `operations.json`.

    Steps that train the same parameters on batches of one shape have the same operations.
    `torch.utils.flop_counter` counts the first step of each kind. The count includes forward and
    backward passes without frozen layers, further passes such as SAM's, and the matrix products of
    the optimizer. It excludes elementwise operations, validation, and the computation of a first
    layer from the data. A counted step runs without compilation and CUDA graphs, and may differ
    from others in the last bits. A resumed run continues the count of its checkpoint.

    UserError on several devices.
    """

    def __init__(self) -> None:
        self.steps: Counter[Kind] = Counter()
        self.operations: dict[Kind, int] = {}
        self._batch: Kind = ()
        self._kind: Kind | None = None
        self._captured: Any = None
        self._counter: FlopCounterMode | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            raise UserError(f"CountOperations must be on one device, got {trainer.world_size}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        training_step = pl_module.training_step

        def counted(*arguments: Any) -> Any:
            self._before_step(pl_module)
            return training_step(*arguments)

        pl_module.training_step = counted  # type: ignore[method-assign]  # for one step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        last = batch_idx + 1 == trainer.num_training_batches
        steps = last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        self._batch = (*batch[0].shape, steps)
        self._kind = None

    def _before_step(self, module: LightningModule) -> None:
        # Not in on_train_batch_start, because the module may freeze parameters after this hook.
        trained = (name for name, p in module.named_parameters() if p.requires_grad)
        self._kind = (*self._batch, *trained)
        if self._kind not in self.operations:
            torch.compiler.set_stance("force_eager")
            # A replayed graph shows no operations.
            self._captured = getattr(module, "captured", None)
            module.captured = None  # type: ignore[assignment]  # not of nn.Module
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._kind is not None
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            torch.compiler.set_stance("default")
            pl_module.captured = self._captured
            self.operations[self._kind] = self._counter.get_total_flops()
            self._counter = None
        self.steps[self._kind] += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": dict(self.steps), "operations": self.operations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = Counter(state_dict["steps"])
        self.operations = dict(state_dict["operations"])

    @property
    def total(self) -> int:
        """Operations of all steps so far."""
        return sum(self.operations[kind] * steps for kind, steps in self.steps.items())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module.training_step
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / FILE
            write_atomically(path, json.dumps({"operations": self.total}) + "\n")
