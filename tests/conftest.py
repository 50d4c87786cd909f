"""Fixtures and hooks of all tests."""

import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

# One thread for each of pytest-xdist's processes: two that share two cores with two threads each
# slow each other several-fold. Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that need a GPU if there is none; else run them last.

    Last, because a checkpoint contains the GPU's random state once a test has used the GPU.
    """
    import torch  # noqa: PLC0415  after OMP_NUM_THREADS

    # CUDA reads CUDA_VISIBLE_DEVICES once, here, before hidden_gpu changes it.
    has_gpu = torch.cuda.is_available()
    of_gpu = [item for item in items if item.get_closest_marker("gpu")]
    others = [item for item in items if not item.get_closest_marker("gpu")]
    items[:] = [*others, *(of_gpu if has_gpu else [])]
    if of_gpu and not has_gpu:
        config.hook.pytest_deselected(items=of_gpu)


@contextmanager
def hidden_gpu() -> Iterator[None]:
    """No GPU for this process and for the processes that it starts."""
    import torch  # noqa: PLC0415  after OMP_NUM_THREADS

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        patch.setattr(torch.backends.mps, "is_available", lambda: False)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hide the GPU from every test without the marker gpu, and let Ctrl-C have its usual effect.

    Lightning ignores SIGINT from a KeyboardInterrupt on, and a shell's background job ignores it
    from the start.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with nullcontext() if item.get_closest_marker("gpu") else hidden_gpu():
        return (yield)


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """The folder with the real CIFAR-10. Tests that ask for it carry the marker real_data."""
    root = Path(os.environ.get("CIFAR10_ROOT") or Path(__file__).parents[1] / "data").resolve()
    if not (root / "cifar-10-batches-py").is_dir():
        pytest.skip(f"CIFAR-10 is not in {root}: put it there, or set $CIFAR10_ROOT")
    return root
