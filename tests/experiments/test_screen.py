"""Which rows are trained for how long, by a stand-in for the training that takes no time."""

import re
import signal
import sys
import time
from dataclasses import replace
from statistics import fmean

import pytest
import yaml

import experiments.screen
from experiments.claims.matching import RESULTS, load_results
from experiments.claims.seed_statistics import welch_difference
from experiments.claims.suites import load_suite
from experiments.records.record import write_record
from experiments.reproduction.runner import Outcome, Workplace
from experiments.screening import halving
from experiments.screening.halving import Rung, Worker, make_rungs, screen
from experiments.screening.page import render

#: accuracy of each row at two epochs and seed 0, in the order in which they come
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
    """What was trained, in order: row, epochs, seed. More of the latter two are more accurate."""
    trained = []

    def run_row(job, place, deadline, stopped):
        if time.time() >= deadline:
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
    """What is trained of a row that reaches the last of three rungs."""
    rungs = ((2, 1), (4, 2), (8, 3))
    return [(row, int(epochs * share), seed) for epochs, seeds in rungs for seed in range(seeds)]


def test_the_better_half_so_far_goes_on_to_more_epochs_and_seeds(suite, place, trained):
    said = []
    assert screen(Worker(suite, place, time.time() + 60), make_rungs(3, epochs=2), said.append)
    assert trained == [
        *whole("base"),
        ("worse", 2, 0),
        *whole("better", share=0.5),  # its share of the suite's epochs at mini scale
        *[("between", 2, 0), ("between", 4, 0), ("between", 4, 1)],  # the second of four, of three
        *whole("best"),
    ]
    assert said[0] == "base: 32.00% (epochs 2, n = 1)"
    assert "worse: left out" in said


def test_it_goes_on_where_it_was_stopped_and_trains_nothing_twice(suite, place, trained):
    rungs = make_rungs(3, epochs=2)
    worker = Worker(suite, place, time.time() + 60)
    assert not screen(replace(worker, deadline=0.0), rungs, print)
    assert trained == []
    assert screen(worker, rungs[:2], print)
    assert screen(worker, rungs, print)
    assert len(trained) == len(set(trained))
    once = list(trained)
    assert screen(worker, rungs, print)
    assert trained == once


def test_the_page_has_means_and_gains_of_what_there_is(suite, place, trained):
    rungs = make_rungs(2, epochs=2)
    screen(Worker(suite, place, time.time() + 60), rungs, print)
    lines = render(suite, rungs, load_results(place.results), "COMMAND").splitlines()
    assert "Written by `COMMAND` from" in lines[2]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert table[0] == ["row", "epochs 2, n = 1", "epochs 4, n = 2", "gain"]
    cells = {re.findall("`(.*)`", line[0])[0]: line[1:] for line in table[2:]}
    assert list(cells) == ["best", "better", "between", "base", "worse"]
    assert cells["worse"] == ["22.00", "", "-10.00"]
    ours, base = [64.0, 64.1], [34.0, 34.1]
    gain = welch_difference(ours, base)
    assert cells["best"][1].startswith(f"{fmean(ours):.2f} ± ")
    assert cells["best"][2] == f"{gain.value:+.2f} ± {(gain.high - gain.low) / 2:.2f}"
    assert cells["base"][2] == ""


def test_the_committed_pages_are_what_their_records_say():
    pages = sorted((RESULTS / "screening").glob("*.md"))
    for path in pages:
        (command,) = re.findall("Written by `(python experiments/screen.py .*?)`", path.read_text())
        flags = experiments.screen.read_arguments(command.split()[2:])
        suite = experiments.screen.read_suite(flags)
        rungs = make_rungs(flags.rungs, flags.epochs)
        assert path.read_text() == render(suite, rungs, load_results(path.parent), command)
    assert pages


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["champoin"], "champoin is no suite (did you mean champion?): name some of "),
        (["all"], "all is no suite: rows of several cannot be compared, so name one"),
        (["champion", "--rows=asma"], "--rows asma is unknown (did you mean "),
        (["champion", "--epochs=0"], "--epochs must be above 0, got 0"),
        (["champion", "--budget-minutes=-1"], "--budget-minutes must be above 0, got -1"),
        ([], "the following arguments are required: SUITE"),
    ],
)
def test_a_mistake_is_one_line(flags, line, monkeypatch, capsys):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "argv", ["screen.py", *flags])
    with pytest.raises(SystemExit) as end:
        experiments.screen.main()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert end.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {line}")


def test_rungs_double_the_epochs():
    assert make_rungs(3, 5) == [Rung(0, 5, 1), Rung(1, 10, 2), Rung(2, 20, 3)]
