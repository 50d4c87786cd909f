"""Fixtures and hooks of all tests."""

import json
import os
import shlex
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from experiments.records.provenance import origin

# One thread per process of pytest-xdist: on two cores, two processes with two threads each are
# several times slower. torch reads this at its import, and child processes of tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


#: settings of the long variants of tests marked trust
LONG = ("KILLS", "ROWS")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, help="write each test's outcome and its origin here")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write the record of `--record`: the docs link to such records of long variants."""
    if path := terminalreporter.config.getoption("record"):
        settings = [f"{name}={os.environ[name]}" for name in LONG if name in os.environ]
        record = {
            "command": " ".join([*settings, "python -m pytest", shlex.join(sys.argv[1:])]),
            **origin(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "tests": {
                report.nodeid: {"outcome": outcome, "seconds": round(report.duration, 1)}
                for outcome in ("passed", "failed", "skipped", "error")
                for report in terminalreporter.getreports(outcome)
            },
        }
        path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that need a GPU if there is none; else run them last.

    They run last, because checkpoints contain the GPU's random state after a test used the GPU.
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
    """Hide the GPU from this process and from the processes that it starts."""
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

    Lightning ignores SIGINT after a KeyboardInterrupt. A background job of a shell always ignores
    it.
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
