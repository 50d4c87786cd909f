"""The README's commands are accepted as printed, and its figures are those of the records."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from experiments.benchmarks.benchmark_record import read_benchmark
from experiments.claims.claims import parameters_of
from experiments.presets import EXPERIMENTS
from experiments.records.record import read_record
from experiments.training.cli import ExperimentCLI
from experiments.training.configuration import resolve_config
from experiments.training.launch import read_launch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RECORDS = sorted((ROOT / "experiments" / "results").glob("*.json"))
BENCHMARKS = sorted((ROOT / "experiments" / "results" / "benchmarks").glob("*.json"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "experiments").rglob("*.md"))]
COMMANDS = re.findall(r"python experiments/run\.py (.+)", "".join(README.split("`")))
OTHERS = re.findall(r"^python experiments/(?!run\b)(\w+)\.py(.*)$", README, flags=re.MULTILINE)


def test_the_table_of_presets_is_all_of_them_with_their_counts() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|$", README, flags=re.MULTILINE))
    counts = {name: parameters_of(resolve_config([f"--arch={name}"])) for name in EXPERIMENTS}
    assert rows == {name: f"{count:,}" for name, count in counts.items()}


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_a_printed_command_is_accepted(command: str, monkeypatch, tmp_path) -> None:
    # Only the parsing: what it would train is tested elsewhere.
    monkeypatch.setattr(ExperimentCLI, "instantiate_classes", lambda self: None)
    arguments = shlex.split(command)
    if {"--help", "--print_config"} & set(arguments):
        with pytest.raises(SystemExit) as exit_:
            ExperimentCLI(read_launch(arguments))
        assert not exit_.value.code
        return
    if "--ckpt_path" in arguments:  # which needs a run to go on with
        at = arguments.index("--ckpt_path")
        del arguments[at : at + 2]
    ExperimentCLI(read_launch([*arguments, "--output", str(tmp_path)]))


@pytest.mark.parametrize(("script", "command"), dict.fromkeys(OTHERS))
def test_a_command_of_another_script_is_accepted(script: str, command: str) -> None:
    import_module(f"experiments.{script}").read_arguments(shlex.split(command))


def test_there_are_commands_and_records_to_check() -> None:
    assert len(COMMANDS) > 5
    assert RECORDS


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_readme_quotes_a_record_to_the_letter(path: Path) -> None:
    record = read_record(path)
    assert record.source == "cifar10"
    assert not record.quick
    assert not record.dirty
    [row] = [line for line in README.splitlines() if f"({path.relative_to(ROOT)})" in line]
    assert record.command[0] in README
    for scores in record.scores.values():
        for score in scores.values():
            assert f"{score.accuracy:.2%}" in row
    assert f"{record.parameters:,}" in row


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_the_readme_gives_each_benchmarks_command_and_links_to_its_record(path: Path) -> None:
    benchmark = read_benchmark(path)
    assert not benchmark.dirty
    assert benchmark.command in README
    assert f"({path.relative_to(ROOT)})" in README


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_pages_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    assert [x for x in targets if "://" not in x and not (path.parent / x).exists()] == []
