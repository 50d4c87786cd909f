"""Every command answers `--help` and reports mistakes before it imports a slow package."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks.flags import KINDS

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {path.name for path in (ROOT / "experiments").glob("*.py")}
COMMANDS -= {"__init__.py", "console.py", "presets.py"}
SLOW = {
    "jsonargparse",
    "lightning",
    "matplotlib",
    "numpy",
    "optuna",
    "pandas",
    "rich",
    "scipy",
    "torch",
    "torchmetrics",
    "torchvision",
    "wandb",
}


def run(*arguments: str) -> tuple[int, str, str, set[str]]:
    """Run a command in a new process; return its exit code, output, errors and imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    wide = os.environ | {"COLUMNS": "100"}
    done = subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    imports = [line for line in lines if line.startswith("import time:")]
    errors = "\n".join(line for line in lines if not line.startswith("import time:"))
    packages = {line.rpartition("|")[2].strip().partition(".")[0] for line in imports}
    return done.returncode, done.stdout, errors, packages


@pytest.mark.parametrize(
    "arguments",
    [[name] for name in sorted(COMMANDS)] + [["benchmark.py", kind] for kind in KINDS],
    ids=" ".join,
)
def test_help_imports_no_slow_package(arguments):
    code, output, errors, packages = run(f"experiments/{arguments[0]}", *arguments[1:], "--help")
    assert (code, errors) == (0, "")
    assert output.startswith("usage: ")
    texts = output.partition("\n\n")[2]
    assert max(map(len, texts.splitlines())) <= 100
    # A flag's help is one line, next to the flag or below it.
    assert not re.findall(r"^  \S.*\S  +\S.*\n {15,}\S|^ {15,}\S.*\n {15,}\S", texts, re.MULTILINE)
    assert "experiments" in packages
    assert not packages & SLOW


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_mistake_is_one_line_and_imports_no_slow_package(name):
    code, output, errors, packages = run(f"experiments/{name}", "--no-such-flag")
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert not packages & SLOW


@pytest.mark.parametrize(
    "content", ["{", "[" * 100_000, '{"other": 1}'], ids=["cut", "deep", "other"]
)
def test_a_report_of_a_file_without_a_record_gives_one_line_without_torch(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    code, output, errors, packages = run("experiments/report.py", str(tmp_path))
    assert (code, output) == (2, "")
    assert errors.startswith(f"error: {tmp_path}")
    assert len(errors.splitlines()) == 1
    assert not packages & SLOW
