"""`run.py --help` is short, needs no torch, and shows the values that a run would have."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.presets import EXPERIMENTS
from experiments.training.configuration import resolve_config
from experiments.training.short_help import flags_of, short_help

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("arch", EXPERIMENTS)
def test_every_value_is_the_resolved_one(arch: str) -> None:
    config = resolve_config(["--arch", arch])
    for flags in flags_of(arch).values():
        for flag, value, _ in flags:
            resolved = config
            for key in flag.split("."):
                resolved = resolved[key]
            if value == "auto":  # the value depends on the machine
                continue
            assert value == (True if isinstance(resolved, dict) else resolved), flag
    assert len(short_help(arch).splitlines()) < 60


def test_help_imports_neither_torch_nor_lightning() -> None:
    command = [sys.executable, "-X", "importtime", "experiments/run.py"]
    flags = ["--arch", "champion", "--model.lr", "0.1", "--help"]
    done = subprocess.run(command + flags, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip("\n") == short_help("champion")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "experiments.training.short_help" in imported
    assert not {"torch", "lightning", "numpy"} & imported
