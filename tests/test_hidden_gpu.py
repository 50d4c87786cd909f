"""A test sees a GPU only if it has the marker gpu."""

import os

import pytest
import torch


@pytest.fixture(scope="module")
def seen_by_a_fixture() -> bool:
    return torch.cuda.is_available()


def test_a_gpu_is_hidden_from_a_test_its_fixtures_and_its_processes(seen_by_a_fixture) -> None:
    assert not seen_by_a_fixture
    assert not torch.cuda.is_available()
    assert torch.cuda.device_count() == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.gpu
def test_a_test_that_needs_a_gpu_sees_it() -> None:
    assert torch.cuda.is_available()
    assert torch.cuda.device_count() > 0
    assert os.environ.get("CUDA_VISIBLE_DEVICES") != ""
