"""Runs that are killed at random moments and resumed end like undisturbed ones, bit for bit.

`KILLS=20 python -m pytest -m trust -k killed_at_random` kills each recipe 20 times; the default is
2. A checkpoint is written after each step, so many kills interrupt a write.
"""

import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.records.record import read_record

pytestmark = pytest.mark.trust
ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("KILLS", "2"))
LENGTH = ("--trainer.max_epochs=3", "--trainer.limit_train_batches=6")
SWA = ("--ema=false", "--swa.start=0.4", "--swa.lr=0.05")
MUON = ("--arch=speed_resnet", "--model.base_width=8", "--model.lr=0.1")
RECIPES = {
    "EMA, Lookahead, MixUp's ramp and accumulation": (
        *("--data.mixup_ramp=true", "--trainer.accumulate_grad_batches=2"),
    ),
    "SWA": SWA,
    "Muon and whitening": MUON,
    "SAM": ("--model.sharpness=sam",),
    "distillation": ("--teacher={teacher}",),
    "gates, SAM and accumulation": (
        *("--arch=wide_resnet", "--model.depth=10", "--model.widen_factor=0.5", "--swa=false"),
        *("--model.routing=gates", "--model.sharpness=sam", "--trainer.accumulate_grad_batches=2"),
    ),
    "two processes": ("--trainer.devices=2",),
}
Launch = Callable[..., list[int]]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Run a command line in one or two processes, kill them after some seconds.

    Returns the exit codes.
    """
    notes = tmp_path_factory.mktemp("processes")
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("ranks.py")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin
        assert server.stdout

        def launch(argv: list[str], seconds: float, **options: int) -> list[int]:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
            ranks = 2 if "--trainer.devices=2" in argv else 1
            pair = [common | {"NODE_RANK": "0", "LOCAL_RANK": str(rank)} for rank in range(ranks)]
            environments = pair if ranks > 1 else [{}]
            job = {"argv": argv, "environments": environments, "folder": str(notes)}
            print(json.dumps(job | {"seconds": seconds} | options), file=server.stdin, flush=True)
            codes = json.loads(server.stdout.readline())
            assert set(codes) <= {0, -signal.SIGKILL}, (notes / "0.err").read_text()
            return codes

        yield launch
        server.kill()


def portable(value: Any) -> Any:
    """Replace tensors in nested containers by bytes, which can be compared."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: portable(x) for key, x in value.items() if key != "Timer"}
    return [portable(x) for x in value] if isinstance(value, list | tuple) else value


def left(folder: Path) -> dict[str, Any]:
    """The contents of a finished run's files, except times and the run's name."""
    (folder / "previous.ckpt").unlink(missing_ok=True)  # left if killed before its removal
    files: dict[str, Any] = {"names": sorted(path.name for path in folder.iterdir())}
    for path in folder.glob("*.ckpt"):
        files[path.name] = portable(torch.load(path, weights_only=True))
    with (folder / "metrics.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        files["curves"] = [{key: float(x) for key, x in row.items() if x} for row in rows]
    with np.load(folder / "predictions.npz") as arrays:
        files["predictions"] = {name: array.tobytes() for name, array in arrays.items()}
    record = read_record(folder / "result.json")
    return files | {"scores": record.scores, "length": (record.epochs, record.steps)}


@pytest.fixture(scope="module")
def teacher(tiny: Callable[..., list[str]], launch: Launch) -> Path:
    argv = tiny(*MUON, *LENGTH)
    launch(argv, 600)
    given = dict(flag.split("=", 1) for flag in argv)
    return Path(given["--output"], given["--name"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_killed_at_random_moments_ends_like_an_undisturbed_run(
    recipe: str, tiny: Callable[..., list[str]], launch: Launch, teacher: Path
) -> None:
    flags = [flag.format(teacher=teacher) for flag in RECIPES[recipe]]
    argv = tiny(*flags, *LENGTH)
    given = dict(flag.split("=", 1) for flag in argv)
    undisturbed = Path(given["--output"], given["--name"])
    began = time.monotonic()
    launch(argv, 600)
    duration = time.monotonic() - began
    expected = left(undisturbed)

    moments, kills = random.Random(recipe), 0
    for number in count():
        if kills == KILLS:
            break
        folder = undisturbed.with_name(f"{undisturbed.name}-{number}")
        while not (folder / "result.json").exists():
            resume = ["--ckpt_path=last"] if (folder / "last.ckpt").exists() else []
            seconds = moments.uniform(0, duration) if kills < KILLS else 600
            # Epoch -1 never comes: no step is interrupted, but each step saves a checkpoint.
            codes = launch([*argv, f"--name={folder.name}", *resume], seconds, interrupt=-1)
            kills += -signal.SIGKILL in codes
            for path in folder.glob("*"):
                os.utime(path, (4e9, 4e9))  # as if the clock was set back later
        found = left(folder)
        assert found.keys() == expected.keys()
        if recipe == "two processes":
            # Sums restart at a checkpoint, so their order differs.
            assert list(map(pytest.approx, found.pop("curves"))) == expected["curves"]
        for name, value in found.items():
            assert value == expected[name], f"{name} after {kills} kills"
