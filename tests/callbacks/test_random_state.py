import random

import numpy as np
import pytest
import torch

from callbacks import EMA, SWA, RandomState
from callbacks.random_state import get_random_state, set_random_state


def draw():
    return (
        random.random(),
        random.gauss(),
        np.random.rand(),  # noqa: NPY002
        np.random.randn(),  # noqa: NPY002
        torch.rand(3).tolist(),
    )


def test_every_generator_continues_from_its_saved_state(tmp_path):
    draw()  # Python and NumPy draw normal numbers in pairs, and now hold a second one
    torch.save(get_random_state(), tmp_path / "state.pt")
    expected = draw()
    draw()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected


def test_resuming_with_dropout_is_exact(resume_is_exact):
    resume_is_exact(RandomState, dropout=0.5)


@pytest.mark.parametrize("average", [lambda: EMA(decay=0.9), lambda: SWA(start=0.25, lr=0.05)])
def test_resuming_an_average_with_dropout_is_exact(resume_is_exact, average):
    resume_is_exact(RandomState, average, dropout=0.5)
