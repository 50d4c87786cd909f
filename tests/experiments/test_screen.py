"""The choice of rows and epochs, with a fake training that takes no time."""

import math
import re
import signal
import sys
import time
from dataclasses import replace
from statistics import fmean

import pytest
import yaml

import experiments.screen
from experiments.claims.matching import load_results
from experiments.claims.seed_statistics import welch_difference
from experiments.claims.suites import RESULTS, load_suite
from experiments.console import UserError
from experiments.records.record import write_record
from experiments.reporting.screening_page import render
from experiments.reproduction import halving
from experiments.reproduction.halving import Rung, Worker, make_rungs, screen
from experiments.reproduction.runner import Outcome, Workplace

#: row -> accuracy at two epochs and seed 0; the order is the order of training
ROWS = {"base": 0.3, "worse": 0.2, "better": 0.5, "between": 0.4, "best": 0.6}
SUITE = {
    "title": "Candidates",
    "paper": "none",
    "mini": {"model.base_width": 4, "trainer.max_epochs": 8},
    "rows": {
        name: {"title": name, "arch": "resnet", "overrides": {"model.lr": 0.1 + i / 100}}
        for i, name in enumerate(ROWS)
    },
    "claims": [],
}
SUITE["rows"]["better"]["mini"] = {"trainer.max_epochs": 4}


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "candidates.yaml"
    path.write_text(yaml.safe_dump(SUITE, sort_keys=False))
    return load_suite(path)


@pytest.fixture
def place(tmp_path):
    return Workplace(tmp_path / "runs", tmp_path / "results")


@pytest.fixture
def trained(monkeypatch, record_of):
    """The list of trainings: row, epochs, seed. Accuracy rises with epochs and with the seed."""
    trained = []

    def run_row(job, place, deadline, stopped):
        if time.time() >= deadline or stopped():
            return Outcome(job, "cut off")
        flags = dict(flag.removeprefix("--").split("=", 1) for flag in job.flags)
        assert flags["test"] == "false"
        row = next(name for name in ROWS if f"-{name}-" in job.name)
        trained.append((row, int(flags["trainer.max_epochs"]), job.seed))
        record = record_of(list(job.flags), name=job.name)
        accuracy = ROWS[row] + job.epochs / 100 + job.seed / 1_000
        score = replace(record.scores["val"]["raw"], accuracy=accuracy)
        place.results.mkdir(exist_ok=True)
        write_record(
            replace(record, scores={"val": {"raw": score}}), place.results / f"{job.name}.json"
        )
        return Outcome(job, "finished")

    monkeypatch.setattr(halving, "run_row", run_row)
    return trained


def whole(row, share=1.0):
    """All trainings of a row that reaches the last of three rungs."""
    rungs = ((2, 1), (4, 2), (8, 3))
    return [(row, int(epochs * share), seed) for epochs, seeds in rungs for seed in range(seeds)]


def test_the_better_half_so_far_gets_more_epochs_and_seeds(suite, place, trained):
    said = []
    assert screen(Worker(suite, place, math.inf), make_rungs(3, epochs=2), said.append)
    assert trained == [
        *whole("base"),
        ("worse", 2, 0),
        *whole("better", share=0.5),  # `share` of the suite's epochs
        # The second of four rows passes the first rung, the second of three fails the next.
        *[("between", 2, 0), ("between", 4, 0), ("between", 4, 1)],
        *whole("best"),
    ]
    assert said[0] == "base: 32.00% (epochs 2, n = 1)"
    assert "worse: left out" in said


def test_it_continues_and_trains_nothing_twice(suite, place, trained):
    rungs = make_rungs(3, epochs=2)
    worker = Worker(suite, place, math.inf)
    assert not screen(replace(worker, deadline=0.0), rungs, print)
    assert trained == []
    for count in (1, 2, 5):  # in the first row: after a rung and between two seeds
        assert not screen(replace(worker, stopped=lambda n=count: len(trained) == n), rungs, print)
        assert trained == whole("base")[:count]
    assert screen(worker, rungs[:2], print)
    assert screen(worker, rungs, print)
    assert len(trained) == len(set(trained))
    once = list(trained)
    assert screen(worker, rungs, print)
    assert trained == once


def test_the_page_has_means_and_gains_of_the_existing_records(suite, place, trained):
    rungs = make_rungs(2, epochs=2)
    screen(Worker(suite, place, math.inf), rungs, print)
    lines = render(suite, rungs, load_results(place.results), "COMMAND").splitlines()
    assert lines[2] == "Written by `COMMAND`"
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert table[0] == ["row", "epochs 2, n = 1", "epochs 4, n = 2", "gain"]
    cells = {re.findall("`(.*)`", line[0])[0]: line[1:] for line in table[2:]}
    assert list(cells) == ["best", "better", "between", "base", "worse"]
    assert cells["worse"] == ["22.00", "", "-10.00"]
    ours, base = [64.0, 64.1], [34.0, 34.1]
    gain = welch_difference(ours, base)
    assert cells["best"][1].startswith(f"{fmean(ours):.2f} ± ")
    low, high = gain.interval
    assert cells["best"][2] == f"{gain.value:+.2f} ± {(high - low) / 2:.2f}"
    assert cells["base"][2] == ""


def test_rows_of_another_process_are_requested_again(suite, place, trained, monkeypatch):
    run_row, asked = halving.run_row, []

    def busy(job, *of):
        asked.append((job.name, job.seed))
        return Outcome(job, "taken") if asked.count(asked[-1]) < 3 else run_row(job, *of)

    monkeypatch.setattr(halving, "run_row", busy)
    assert screen(Worker(suite, place, math.inf), make_rungs(1, 2, seeds=2), print)
    assert [seed for _, seed in asked[:6]] == [0, 1] * 3
    assert len(trained) == 2 * len(ROWS)


def test_a_failed_training_ends_it_with_one_line(suite, place, monkeypatch):
    monkeypatch.setattr(halving, "run_row", lambda job, *_: Outcome(job, "failed", "no space"))
    with pytest.raises(UserError, match=r"^candidates_2epochs-base-mini-0: no sp"):
        screen(Worker(suite, place, math.inf), make_rungs(1, 2), print)


def test_the_first_trainings_can_have_several_seeds(suite, place, trained):
    screen(Worker(suite, place, math.inf), make_rungs(1, epochs=2, seeds=3), print)
    assert [seed for row, _, seed in trained if row == "worse"] == [0, 1, 2]


def run_main(monkeypatch, *flags):
    """Run `screen.main` with these flags, then restore the signal handlers."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "argv", ["screen.py", *map(str, flags)])
    try:
        experiments.screen.main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_the_command_writes_a_page_for_the_suite_and_one_for_some_rows(
    suite, place, trained, monkeypatch, capsys, tmp_path
):
    file = tmp_path / "candidates.yaml"
    where = ("--output", place.runs, "--results", place.results)
    run_main(monkeypatch, file, "--rungs=1", *where, "--budget-minutes=1e-9")
    assert "Stopped: the same command continues." in capsys.readouterr().out
    run_main(monkeypatch, file, "--rungs=1", *where)
    page = place.results / "candidates.md"
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"Ranking: {page}"
    text = page.read_text()
    assert text.count("\n| `") == len(ROWS)
    assert "on 10,000 validation images" in text
    run_main(monkeypatch, file, "--rungs=1", "--rows=base,best", *where)
    some = (place.results / "candidates-base-best.md").read_text()
    assert some.count("\n| `") == 2
    assert "--rows base,best" in some
    assert page.read_text() == text
    assert len(trained) == len(ROWS)


def test_the_committed_pages_equal_new_renderings():
    pages = sorted((RESULTS / "screening").glob("*.md"))
    for path in pages:
        (command,) = re.findall("Written by `(python experiments/screen.py .*?)`", path.read_text())
        flags = experiments.screen.read_arguments(command.split()[2:])
        suite = experiments.screen.read_suite(flags)
        rungs = make_rungs(flags.rungs, flags.epochs, flags.seeds)
        assert path.read_text() == render(suite, rungs, load_results(path.parent), command)
    assert pages


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["champoin"],
            "champoin is not a suite (did you mean champion or champion_1m?): name some of ",
        ),
        (["all"], "all is not a suite: rows of several suites cannot be compared, so name one"),
        (["champion", "--rows=asma"], "--rows asma is unknown (did you mean "),
        (["champion", "--epochs=0"], "--epochs must be above 0, got 0"),
        (
            ["champion", "--epochs=3"],
            "asam_350 has 4 epochs and base has 8: --epochs must be a multiple of 2",
        ),
        (["champion", "--seeds=0"], "--seeds must be above 0, got 0"),
        (["champion", "--seeds=1001"], "--seeds must be at most 1,000, got 1001"),
        (["champion", "--rungs=21"], "--rungs must be at most 20, got 21"),
        (["champion", "--output=/dev/null/x"], "--output /dev/null/x must be a folder: /dev/null "),
        (["champion", "--results=/dev/null"], "--results /dev/null must be a folder: /dev/null "),
        (["champion", "--budget-minutes=-1"], "--budget-minutes must be above 0, got -1"),
        (["champion", "--budget-minutes=nan"], "--budget-minutes must be above 0, got nan"),
        ([], "the following arguments are required: SUITE"),
    ],
)
def test_a_mistake_is_one_line(flags, line, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run_main(monkeypatch, *flags)
    assert end.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {line}")


def test_rungs_double_the_epochs():
    assert make_rungs(3, 5) == [Rung(0, 5, 1), Rung(1, 10, 2), Rung(2, 20, 3)]
    assert make_rungs(2, 4, seeds=3) == [Rung(0, 4, 3), Rung(1, 8, 4)]
