"""The README and the pages: all commands are accepted, and all links work."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from experiments.claims.claims import parameters_of
from experiments.presets import EXPERIMENTS
from experiments.records.record import read_benchmark, read_record
from experiments.training.cli import SWITCHES, ExperimentCLI
from experiments.training.configuration import resolve_config
from experiments.training.launch import read_launch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").rglob("*.md"))
TEXT = "\n".join(path.read_text() for path in [ROOT / "README.md", *DOCS])
RESULTS = (ROOT / "docs" / "results.md").read_text()
RECORDS = sorted((ROOT / "experiments" / "results").glob("*.json"))
BENCHMARKS = sorted((ROOT / "experiments" / "results" / "benchmarks").glob("*.json"))
PAGES = [ROOT / "README.md", *DOCS, *sorted((ROOT / "experiments").rglob("*.md"))]
#: commands of extending.md name a network that exists only after its steps
EXTENDING = (ROOT / "docs" / "extending.md").read_text()
COMMANDS = re.findall(
    r"experiments/run\.py (--.+)", "".join(TEXT.replace(EXTENDING, "").split("`"))
)
OTHERS = re.findall(r"^python experiments/(?!run\b)(\w+)\.py(.*)$", TEXT, flags=re.MULTILINE)
FLAGS = set(re.findall(r"--(?:model|data|trainer|ema|swa|lookahead|budget)\.\w+", TEXT))
COPIED = ("lightning_modules", "datamodules", "callbacks", "experiments")


def test_the_readme_is_short() -> None:
    assert len(README) <= 9_000


def test_the_table_of_presets_is_all_of_them_with_their_counts() -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([\d,]+) \|$", page, flags=re.MULTILINE))
    counts = {name: parameters_of(resolve_config([f"--arch={name}"])) for name in EXPERIMENTS}
    assert rows == {name: f"{count:,}" for name, count in counts.items()}


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_a_printed_command_is_accepted(command: str, monkeypatch, tmp_path) -> None:
    # This test only parses the flags; other tests train.
    monkeypatch.setattr(ExperimentCLI, "instantiate_classes", lambda self: None)
    arguments = shlex.split(command)
    if {"--help", "--print_config"} & set(arguments):
        with pytest.raises(SystemExit) as exit_:
            ExperimentCLI(read_launch(arguments))
        assert not exit_.value.code
        return
    if "--ckpt_path" in arguments:  # it needs a run to continue
        at = arguments.index("--ckpt_path")
        del arguments[at : at + 2]
    if "folder" in arguments:  # it needs pictures
        monkeypatch.chdir(tmp_path)
        for name in ("daisy", "rose"):
            folder = Path(arguments[arguments.index("--data.root") + 1], "train", name)
            folder.mkdir(parents=True)
            for i in range(300):
                (folder / f"{i}.jpg").touch()
    ExperimentCLI(read_launch([*arguments, "--output", str(tmp_path)]))


@pytest.mark.parametrize(("script", "command"), dict.fromkeys(OTHERS))
def test_a_command_of_another_script_is_accepted(script: str, command: str) -> None:
    import_module(f"experiments.{script}").read_arguments(shlex.split(command))


def test_the_arguments_of_pytest_select_existing_tests() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    names = set(re.findall(r"def (test_\w+)", tests))
    files = re.findall(r"tests/[\w/]+\.py", page)
    words = re.findall(r"-k (?:(\w+)|\"([^\"]+)\")", page)
    assert len(files) > 5
    assert len(words) > 5
    assert [file for file in files if not (ROOT / file).exists()] == []
    for word in " or ".join(one or several for one, several in words).split(" or "):
        assert any(word in name for name in names), word


def test_every_flag_in_the_text_exists() -> None:
    known = {
        f"--{key}.{name}" for key, (callback, _) in SWITCHES.items()
        for name in [*signature(callback).parameters, "help"]
    }  # fmt: skip
    for arch in EXPERIMENTS:
        config = resolve_config([f"--arch={arch}"])
        known |= {f"--{key}.{name}" for key in ("model", "data", "trainer") for name in config[key]}
    assert known >= FLAGS


def test_the_library_example_runs(tmp_path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 12
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
        },
        check=True,
        capture_output=True,
    )


def test_there_are_commands_and_records_to_check() -> None:
    assert len(COMMANDS) > 5
    assert len(OTHERS) > 20
    assert len(FLAGS) > 40
    assert RECORDS


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_pages_quote_a_record_to_the_letter(path: Path) -> None:
    record = read_record(path)
    assert record.source == "cifar10"
    assert not record.quick
    assert not record.dirty
    [row] = [line for line in RESULTS.splitlines() if f"(../{path.relative_to(ROOT)})" in line]
    assert record.command[0] in RESULTS
    for scores in record.scores.values():
        for score in scores.values():
            assert f"{score.accuracy:.2%}" in row
    assert f"{record.parameters:,}" in row


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_the_pages_give_each_benchmarks_command_and_link_to_its_record(path: Path) -> None:
    benchmark = read_benchmark(path)
    assert not benchmark.dirty
    assert benchmark.command in TEXT
    assert f"(../{path.relative_to(ROOT)})" in TEXT


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_pages_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())
    assert [x for x in targets if "://" not in x and not (path.parent / x).exists()] == []


def follow_extending(root: Path) -> str:
    """Apply the blocks of extending.md to a copy of the project; returns its command."""
    blocks = re.findall(r'```(\w+) title="(.+?)"\n(.*?)```', EXTENDING, flags=re.DOTALL)
    assert len(blocks) > 8
    for kind, name, content in blocks:
        path = root / name
        if kind != "diff":
            assert not path.exists(), name
            path.write_text(content)
            continue
        lines = content.splitlines(keepends=True)
        old, new = ("".join(x[1:] for x in lines if x[0] in marks) for marks in (" -", " +"))
        text = path.read_text()
        assert text.count(old) == 1, f"{name} does not contain this place once:\n{old}"
        path.write_text(text.replace(old, new))
    (command,) = re.findall(r"^python experiments/run\.py (.+)$", EXTENDING, flags=re.MULTILINE)
    return command


def copy_project(root: Path) -> None:
    for package in COPIED:
        leave = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / package, root / package, ignore=leave)


def test_the_steps_of_extending_train_a_network(tmp_path) -> None:
    copy_project(tmp_path)
    command = follow_extending(tmp_path)
    short = (
        "--data.source synthetic --trainer.max_epochs 1 --trainer.limit_train_batches 4 "
        "--trainer.enable_progress_bar false --wandb disabled --test false --name toy"
    )
    ended = subprocess.run(
        [sys.executable, "experiments/run.py", *shlex.split(f"{command} {short}")],
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(tmp_path),
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Everything of this run" in ended.stdout
    record = json.loads((tmp_path / "runs" / "toy" / "result.json").read_text())
    assert "weight_norm" in (tmp_path / "runs" / "toy" / "metrics.csv").read_text()
    assert record["config"]["data"]["policy"] == "random_grey"
    assert record["config"]["model"]["label_smoothing"] == 0.1
