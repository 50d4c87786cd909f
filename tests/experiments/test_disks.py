"""Training on disks that fill up or are read-only, and in folders that vanish."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.records.integrity import check_archive

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.trust
# The command on few synthetic images, for a new process.
PROGRAM = """
import datamodules.cifar10
from datamodules.synthetic import synthetic_cifar10

datamodules.cifar10.synthetic_cifar10 = lambda split, **_: synthetic_cifar10(
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


ENDLESS = ("--name=run", "--trainer.max_epochs=1000000")


def start(*flags: str, inside: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*inside, sys.executable, "-c", PROGRAM, *FLAGS, *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Wait for the process; return its exit code and error lines, and reject a traceback."""
    _, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors, errors
    return process.returncode, [x for x in errors.splitlines() if x.startswith("error: ")]


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


@dataclass(frozen=True)
class Disk:
    """A disk of 8 MiB that only processes in its namespace see."""

    path: Path  # inside the namespace
    seen: Path  # outside the namespace
    inside: tuple[str, ...]  # prefix of a command that runs in the namespace


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    mount = 'mount -t tmpfs -o size=8m tmpfs "$0" && echo mounted && exec sleep 600'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, str(tmp_path)]
    if not shutil.which("unshare"):
        pytest.skip("a disk of its own needs unshare, from util-linux")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        if holder.stdout.readline() != "mounted\n":
            pytest.skip("this machine forbids a disk of its own in a namespace")
        inside = ("nsenter", f"--target={holder.pid}", "--user", "--preserve-credentials")
        seen = Path(f"/proc/{holder.pid}/root{tmp_path}")
        yield Disk(tmp_path, seen, (*inside, "--mount"))
        holder.kill()


def test_a_disk_full_during_a_checkpoint_and_a_read_only_disk(
    disk: Disk,
) -> None:
    flags = (f"--output={disk.path}", *ENDLESS)
    last, filler = disk.seen / "run" / "last.ckpt", disk.seen / "filler"

    process = start(*flags, inside=disk.inside)
    wait_for(process, last.exists)
    free = os.statvfs(disk.seen)
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize - last.stat().st_size // 2))
    before = last.read_bytes()
    process.send_signal(signal.SIGTERM)
    code, lines = ended(process)
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: the disk is full: ")
    assert last.read_bytes() == before
    check_archive(last)
    assert not list(last.parent.glob("*.partial"))

    filler.unlink()
    curves = last.with_name("metrics.csv")
    size = curves.stat().st_size
    process = start(*flags, "--ckpt_path=last", inside=disk.inside)
    wait_for(process, lambda: curves.exists() and curves.stat().st_size > size)
    process.send_signal(signal.SIGTERM)
    ended(process)
    assert last.read_bytes() != before
    check_archive(last)

    remount = ("mount", "-o", "remount,bind,ro", str(disk.path))
    subprocess.run([*disk.inside, *remount], check=True)
    files = {path.name: path.stat().st_mtime for path in last.parent.iterdir()}
    code, lines = ended(start(*flags, "--ckpt_path=last", inside=disk.inside))
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"error: --output {disk.path} cannot be used: ")
    assert {path.name: path.stat().st_mtime for path in last.parent.iterdir()} == files


def test_a_folder_that_is_deleted_during_the_run_ends_it_and_stays_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(f"--output={tmp_path}", *ENDLESS)
    wait_for(process, (folder / "last.ckpt").exists)
    folder.rename(tmp_path / "deleted")  # an atomic move, although the run is writing files
    shutil.rmtree(tmp_path / "deleted")
    code, lines = ended(process)
    assert code == 2
    assert len(lines) == 1
    assert str(folder) in lines[0]
    assert not folder.exists()
