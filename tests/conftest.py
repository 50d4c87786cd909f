"""What the tests of several rooms share."""

import os
from pathlib import Path

import pytest

# One thread for each of pytest-xdist's processes: two that share two cores with two threads each
# slow each other several-fold. Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """The folder with the real CIFAR-10. Tests that ask for it carry the marker real_data."""
    root = Path(os.environ.get("CIFAR10_ROOT") or Path(__file__).parents[1] / "data").resolve()
    if not (root / "cifar-10-batches-py").is_dir():
        pytest.skip(f"CIFAR-10 is not in {root}: put it there, or set $CIFAR10_ROOT")
    return root
