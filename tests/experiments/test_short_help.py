"""`run.py --help` is short, needs no torch, and shows the values that a run would have."""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from callbacks import OnNaN
from datamodules import CIFAR10DataModule
from experiments.presets import EXPERIMENTS, Precision
from experiments.training.cli import SWITCHES
from experiments.training.configuration import resolve_config
from experiments.training.loggers import WandbMode
from experiments.training.short_help import FLAGS, flags_of, short_help
from lightning_modules.hyperparameters import CompileMode

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


def test_the_help_names_the_values_that_a_flag_has() -> None:
    data = get_type_hints(CIFAR10DataModule.__init__)
    values = {
        "on_nan": OnNaN,
        "wandb": WandbMode,
        "trainer.precision": Precision,
        "model.compile": CompileMode,
        "data.dataset": data["dataset"],
        "data.policy": data["policy"],
    }
    texts = {flag: text for flags in FLAGS.values() for flag, _, text in flags}
    for flag, kind in values.items():
        named = re.findall(r"[\w-]+", texts[flag])
        # Words with an underscore or a hyphen are values. A new policy may have no help.
        assert {x for x in named if re.search("[_-]", x)} <= set(get_args(kind)), flag
        assert flag == "data.policy" or set(get_args(kind)) <= set(named), flag


def test_the_help_of_a_callback_is_one_sentence(build: Callable[..., Any]) -> None:
    text = " ".join(build().parser.format_help().split())
    for flag, (callback, _) in SWITCHES.items():
        (shown,) = re.findall(rf"--{flag} {flag.upper()} (.*?) \(type: bool \| ", text)
        assert shown == inspect.getdoc(callback).partition("\n")[0]


def test_help_imports_neither_torch_nor_lightning() -> None:
    command = [sys.executable, "-X", "importtime", "experiments/run.py"]
    flags = ["--arch", "champion", "--model.lr", "0.1", "--help"]
    done = subprocess.run(command + flags, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip("\n") == short_help("champion")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "experiments.training.short_help" in imported
    assert not {"torch", "lightning", "numpy"} & imported
