"""The state of every global random generator, in the checkpoint."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


def get_random_state() -> dict[str, Any]:
    """State of the global generators of Python, NumPy, torch and, once in use, the current GPU.

    Only tensors and primitives, so that a checkpoint with it loads with `weights_only=True`.
    """
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  # the global one is meant
    assert isinstance(numpy_state, dict)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put every generator where `get_random_state` found it; a GPU's only where one is in use."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002  # the global one is meant
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def seed_process(rank: int) -> None:
    """Seed every global generator by torch's seed and a rank, so that no two ranks are alike."""
    [seed] = np.random.SeedSequence([torch.initial_seed(), rank]).generate_state(1).tolist()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the global one is meant
    torch.manual_seed(seed)


class RandomState(Callback):
    """Saves the global random generators with every checkpoint; resumed training restores them.

    With it, dropout and everything else that draws from them continue as if never interrupted.
    Generators of a loader's own are the loader's to save.

    Of several processes, which all began with one seed, each draws numbers of its own from the
    start of training on, and the checkpoint holds the state of each. Where the number of processes
    changes, those that were there before continue theirs.
    """

    def __init__(self) -> None:
        self._processes = 1
        self._restored: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: making optimizers and loaders may draw numbers too.
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
