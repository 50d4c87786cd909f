"""Global random generators in checkpoints."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


def get_random_state() -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy, torch and a GPU in use.

    The states consist of tensors and primitives, so that `weights_only=True` can load them.
    """
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  # the global generator
    assert isinstance(numpy_state, dict)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the states that `get_random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002  # the global generator
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def seed_process(rank: int) -> None:
    """Seed the global generators differently for each rank."""
    [seed] = np.random.SeedSequence([torch.initial_seed(), rank]).generate_state(1).tolist()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the global generator
    torch.manual_seed(seed)


class RandomState(Callback):
    """Saves and restores the global random generators in checkpoints.

    Dropout, for example, then continues as if training had not been interrupted. Each process of
    several has its own random numbers and its own state in the checkpoint. A resumed run may have
    another number of processes: additional processes are seeded anew.
    """

    def __init__(self) -> None:
        self._processes = 1
        self._restored: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # This must be late, because optimizers and loaders may draw numbers when they are created.
        self._processes = trainer.world_size
        states = self._restored.get("processes", [self._restored] if self._restored else [])
        if trainer.global_rank < len(states):
            set_random_state(states[trainer.global_rank])
        elif trainer.global_rank > 0:
            seed_process(trainer.global_rank)
        self._restored = {}

    def state_dict(self) -> dict[str, Any]:
        own = get_random_state()
        if self._processes == 1:
            return own
        states = [own] * self._processes
        torch.distributed.all_gather_object(states, own)
        return {"processes": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict
