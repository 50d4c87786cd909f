"""Training on disks that fill up, and in folders that are read-only or vanish."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.trust
# The command in a process of its own, on few synthetic images.
PROGRAM = """
import datamodules.cifar10
from datamodules.synthetic import synthetic_cifar10

datamodules.cifar10.synthetic_cifar10 = lambda split: synthetic_cifar10(
    split, per_class=200 if split == "train" else 30
)
from experiments.run import main

main()
"""
FLAGS = (
    *("--arch=sam_resnet", "--model.base_width=8", "--model.blocks=[1, 1, 1]"),
    *("--data.source=synthetic", "--data.batch_size=32", "--trainer.limit_train_batches=3"),
    *("--trainer.accelerator=cpu", "--wandb=disabled", "--model.compile=false"),
)


def start(*flags: str, **options: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *FLAGS, *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """The exit code, and the lines of errors; no traceback."""
    _, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors, errors
    return process.returncode, [x for x in errors.splitlines() if x.startswith("error: ")]


def checkpoint(path: Path) -> bytes:
    torch.load(path, weights_only=True)
    return path.read_bytes()


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint(tmp_path: Path) -> None:
    last = tmp_path / "run" / "last.ckpt"
    flags = (f"--output={tmp_path}", "--name=run", "--trainer.max_epochs=1000000")

    def limit() -> None:
        # The system rejects the part of a file beyond this size, and Python ignores the signal.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    process = start(*flags)
    wait_for(process, last.exists)
    process.send_signal(signal.SIGTERM)
    ended(process)
    before = checkpoint(last)

    process = start(*flags, "--ckpt_path=last", preexec_fn=limit)
    wait_for(process, lambda: len((tmp_path / "run" / "commands.txt").read_text().split("\n")) > 2)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    code, lines = ended(process)
    assert code == 2
    assert len(lines) == 1
    assert "File too large" in lines[0]
    assert checkpoint(last) == before
    assert not list(last.parent.glob("*.partial"))

    process = start(*flags, "--ckpt_path=last")
    wait_for(process, lambda: last.read_bytes() != before)
    process.send_signal(signal.SIGTERM)
    ended(process)
    checkpoint(last)


def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    # Root may write to any folder, except for some of the system's own.
    folder = Path("/proc") if os.getuid() == 0 and Path("/proc").is_dir() else tmp_path
    if folder == tmp_path:
        tmp_path.chmod(0o555)
    code, lines = ended(start(f"--output={folder / 'runs'}", "--name=run"))
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"error: --output {folder / 'runs'} cannot be used")
    assert not (folder / "runs").exists()


def test_a_folder_that_is_deleted_during_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(
        f"--output={tmp_path}", "--name=run", "--trainer.max_epochs=1000000", "--ema=false"
    )
    wait_for(process, (folder / "last.ckpt").exists)
    shutil.rmtree(folder)
    process.send_signal(signal.SIGTERM)
    code, lines = ended(process)
    assert code != 0 or not (folder / "result.json").exists()
    assert len(lines) <= 1
