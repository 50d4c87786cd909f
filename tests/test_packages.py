"""The packages can be imported without optional modules, and their docstrings begin briefly."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("lightning_modules", "datamodules", "callbacks", "experiments")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_first_line_of_a_docstring_is_short(package: str) -> None:
    for file in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                line = (ast.get_docstring(node) or "").partition("\n")[0]
                assert len(line) < 80, f"{file}: {line}"


def test_the_packages_can_be_imported_without_the_command_lines_packages() -> None:
    program = (
        "import sys; sys.modules['jsonargparse'] = sys.modules['wandb'] = None\n"
        "import lightning_modules, datamodules, callbacks\n"
        "[lightning_modules.ARCHITECTURES[name] for name in lightning_modules.ARCHITECTURES]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("command", ["run", "reproduce", "predict"])
def test_a_system_without_fcntl_gives_one_line(command: str) -> None:
    program = (
        "import runpy, sys; sys.modules['fcntl'] = None\n"
        f"runpy.run_path('experiments/{command}.py', run_name='__main__')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: fcntl, which locks a run's folder, is missing")
