"""The packages can be imported without optional modules."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_rooms_can_be_imported_without_the_command_lines_packages() -> None:
    program = (
        "import sys; sys.modules['jsonargparse'] = sys.modules['wandb'] = None\n"
        "import lightning_modules, datamodules, callbacks\n"
        "[lightning_modules.ARCHITECTURES[name] for name in lightning_modules.ARCHITECTURES]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("command", ["run", "reproduce", "predict"])
def test_a_system_without_fcntl_is_told_in_one_line(command: str) -> None:
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
