"""The command and its runner, with a fake run.py that takes milliseconds.

test_resume.py tests that an interrupted run continues bit for bit, and test_reproduce_killed.py
tests this for a suite.
"""

import json
import math
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Event

import pytest
import torch
import yaml

import experiments.reproduce
import experiments.reproduction.runner
from experiments.claims.matching import load_results, training_of_row
from experiments.claims.suites import load_suite
from experiments.console import duration
from experiments.records.provenance import describe_device
from experiments.records.record import (
    Calibration,
    Evaluation,
    StrategyResult,
    StrategyScore,
    read_evaluation,
    write_record,
)
from experiments.reproduction import engine
from experiments.reproduction.engine import Here, execute
from experiments.reproduction.plan import begun_runs, make_plan
from experiments.reproduction.progress import steps_done
from experiments.reproduction.runner import Workplace, lock, run_row
from experiments.reproduction.training_cost import (
    Stopwatch,
    operations_of_training,
)
from experiments.training.configuration import resolve_config
from experiments.training.length import batches_per_epoch
from experiments.training.machine import resolve_precision

FOUR = {"trainer.max_epochs": 4}
ROWS = {
    "plain": ("resnet", FOUR),
    "se": ("sam_resnet", {"trainer.max_epochs": 3}),
    "again": ("sam_resnet", {"trainer.max_epochs": 3}),
    "wide": ("resnet", FOUR | {"model.base_width": 65}),
    "hidden": ("resnet", {"trainer.max_epochs": 1}),
    "counted": ("resnet", {"trainer.max_epochs": 1, "model.base_width": 9}),
}
CLAIMS = (
    ("test accuracy", "se - plain"),
    ("test accuracy", "wide - plain"),
    ("val accuracy", "plain"),
    ("val accuracy", "hidden"),
    ("parameters", "counted"),
)
SUITE = {
    "title": "A table",
    "paper": "none",
    "short": {"trainer.max_epochs": 3},
    "mini": {"trainer.max_epochs": 2},
    "rows": {
        name: {"title": name, "arch": arch, "overrides": overrides}
        for name, (arch, overrides) in ROWS.items()
    },
    "claims": [
        {"id": x, "text": x, "source": "y", "metric": metric, "measure": x, "claimed": 0.6}
        | ({"not_comparable": "another test set"} if x == "hidden" else {})
        for metric, x in CLAIMS
    ],
}
# A fake run.py, which only writes the files of a run. It fails if its folder has a file `fail`.
# With a file `wait` it waits in an epoch until SIGTERM.
RUN = """
import json, shutil, signal, sys, time
from pathlib import Path

here = Path(__file__).parent
flags = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[1:])
folder = Path(flags["output"]) / flags["name"]
resumes = (folder / "last.ckpt").exists()
assert resumes == ("ckpt_path" in flags) and not (folder / "result.json").exists()
with (here / "launches").open("a") as file:
    teacher = ["by", flags["teacher"]] if "teacher" in flags else []
    print(flags["name"], "resumed" if resumes else "begun", *teacher, file=file)
if (here / "fail").exists() and flags["arch"] == "resnet":
    sys.exit("RuntimeError: " + (here / "fail").read_text())
record = json.loads((here / (flags["arch"] + flags["seed"])).read_text())
(folder / "config.yaml").write_text(json.dumps(record["config"]))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
(folder / "last.ckpt").touch()
if (here / "wait").exists():
    time.sleep(300)
time.sleep(0.1)
(folder / "result.json").write_text(json.dumps(record))
"""


@pytest.fixture
def suite(tmp_path):
    """Rows plain, se, again (same as se) and wide; the claims of two others need no training."""
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(SUITE, sort_keys=False))
    return load_suite(path)


@pytest.fixture
def scripts(tmp_path, suite, record_of):
    """A folder with the fake run.py, and the records that it writes."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "run.py").write_text(RUN)
    for name in ("plain", "se"):
        row = suite.rows[name]
        for seed in range(2):
            run = f"table-{name}-full-{seed}"
            write_record(record_of(row.flags("full", seed), name=run), folder / "record.json")
            (folder / "record.json").rename(folder / f"{row.arch}{seed}")
    return folder


@pytest.fixture
def launches(scripts):
    """The launches of the fake run.py, in order."""

    def launches():
        path = scripts / "launches"
        return path.read_text().split("\n")[:-1] if path.exists() else []

    return launches


@pytest.fixture
def place(tmp_path, scripts):
    return Workplace(tmp_path / "runs", tmp_path / "results" / "claims", tmp_path, scripts)


@pytest.fixture
def plan(suite, place):
    """Make a plan for some rows, given the records that exist at the call."""

    def plan(rows=("plain", "se"), seeds=1, scale="full"):
        results = load_results(place.results.parent)
        return make_plan([suite], rows, scale, seeds, results, place.runs)

    return plan


@pytest.fixture
def reproduce(tmp_path, scripts, suite, monkeypatch, capsys):
    """Run the command with the fake run.py; return its exit code, output and errors."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def reproduce(*flags, suite="table.yaml"):
        monkeypatch.chdir(tmp_path)
        stand_in = partial(Workplace, scripts=scripts)
        monkeypatch.setattr(experiments.reproduction.runner, "Workplace", stand_in)
        argv = ["reproduce.py", suite, "--results=results", *flags]
        monkeypatch.setattr(sys, "argv", [x for x in argv if x])
        with pytest.raises(SystemExit) as end:
            experiments.reproduce.main()
        output = capsys.readouterr()
        return end.value.code, output.out, output.err

    yield reproduce
    for number, handler in handlers.items():
        signal.signal(number, handler)


def names(jobs):
    return [job.name for job in jobs]


def records_in(folder):
    """The names in all files under a folder; all must be complete records."""
    return {path.name: json.loads(path.read_text())["name"] for path in folder.rglob("*.*")}


def test_every_row_has_its_first_seed_before_one_has_its_second(plan):
    jobs = plan(rows=(), seeds=2)
    assert [job.seed for job in jobs] == [0] * 4 + [1] * 4
    # First the row with three claims, then the rows with one (`se` is cheapest), then none.
    assert names(jobs)[:4] == [f"table-{x}-full-0" for x in ("plain", "se", "wide", "hidden")]
    assert [job.open_claims for job in jobs[:4]] == [3, 1, 1, 0]


def test_only_claims_that_a_scale_can_decide_are_open(plan):
    counts = {job.name: job.open_claims for job in plan(rows=(), scale="short")}
    assert counts == {
        "table-plain-short-0": 2,  # without the claim about its own value
        "table-se-short-0": 1,
        "table-wide-short-0": 1,
    }
    assert {job.open_claims for job in plan(rows=(), scale="mini")} == {0}


def test_a_row_without_claims_is_trained_and_a_counted_row_is_not(plan, suite, place):
    assert names(plan(rows=["counted"])) == []
    bare = replace(suite, claims=())
    jobs = make_plan([bare], (), "full", 1, load_results(place.results.parent), place.runs)
    # `se` and `again` are the same training.
    assert len(jobs) == len(ROWS) - 1
    (counted,) = [x for x in suite.claims if x.counted]
    only = replace(suite, claims=(counted,))
    assert make_plan([only], ["plain"], "full", 1, load_results(place.results), place.runs) == []


def test_measured_rows_make_the_rows_of_their_claims_more_valuable(plan, place, suite, record_of):
    place.results.mkdir(parents=True)
    for name, seed in (("plain", 0), ("se", 1)):
        record = record_of(suite.rows[name].flags("full", seed), name=f"any-{name}")
        write_record(record, place.results / f"{name}.json")
    jobs = plan(rows=(), seeds=2)
    # Only `wide - plain` waits for a first measurement.
    assert [(job.name, job.open_claims) for job in jobs] == [
        ("table-wide-full-0", 1),
        ("table-hidden-full-0", 0),
        # These jobs would give their rows a second seed.
        ("table-plain-full-1", 1),
        ("table-wide-full-1", 1),
        ("table-hidden-full-1", 0),
        ("table-se-full-0", 0),
    ]


def test_rows_with_the_same_training_are_trained_once(plan):
    assert names(plan(rows=["se", "again"])) == ["table-se-full-0"]
    assert names(plan(rows=["again"])) == ["table-again-full-0"]


def test_a_scale_is_another_training_with_another_name(plan):
    full, mini = plan(["plain"])[0], plan(["plain"], scale="mini")[0]
    assert mini.name == "table-plain-mini-0"
    assert mini.key != full.key
    assert (full.epochs, mini.epochs) == (4, 2)


def test_operations_equal_a_records():
    record = json.loads(Path("experiments/results/sam_resnet_width16_8epochs.json").read_text())
    counted = 3 * record["operations_per_image"] * record["train_images"] * record["epochs"]
    assert operations_of_training(record["config"]) == counted
    assert batches_per_epoch(record["config"]) * record["epochs"] == record["steps"]


def test_a_row_is_trained_once_and_its_record_filed(plan, place, launches):
    (job,) = plan(["se"])
    for _ in range(2):
        assert run_row(job, place, math.inf).ending == "finished"
    assert launches() == ["table-se-full-0 begun"]
    assert records_in(place.results) == {"table-se-full-0.json": "table-se-full-0"}
    assert plan(["se"]) == []


def test_evaluations_for_claims_are_made_once(
    reproduce, place, scripts, launches, tmp_path, record_of
):
    suite = tmp_path / "table.yaml"
    suite.write_text(suite.read_text().replace("measure: se - plain", 'measure: "se[tta] - se"'))
    calibration = Calibration(0.0, 0.0, 0.0, 0.0)
    score = StrategyScore(0.9, 0.0, 0.0, 0.0, 10_000, calibration, None)
    results = {
        name: StrategyResult({"temperature": 1.0}, None, 1.0, {"test": score})
        for name in ("plain", "tta")
    }
    evaluation = Evaluation(
        runs=["table-se-full-0"],
        command="",
        source="cifar10",
        commit="",
        dirty=False,
        versions={},
        device="cpu",
        precision="32-true",
        finished="",
        baseline="plain",
        chosen=None,
        strategies=results,
    )
    write_record(evaluation, scripts / "evaluation")
    copy = f"shutil.copy({str(scripts / 'evaluation')!r}, sys.argv[1] + '/evaluation.json')"
    (scripts / "evaluate.py").write_text(f"import shutil, sys; {copy}")

    code, out, _ = reproduce("--rows=se", "--seeds=1")
    assert (code, launches()) == (0, ["table-se-full-0 begun"])
    assert "+0.00" in out
    filed = place.results / "evaluations" / "table-se-full-0.json"
    assert read_evaluation(filed) == evaluation
    (scripts / "evaluate.py").unlink()
    assert reproduce("--rows=se", "--seeds=1")[0] == 0

    # A record that was rewritten later, for example with a new field, is not overwritten.
    filed.unlink()
    record = place.results / "table-se-full-0.json"
    record.write_text(written_anew := json.dumps(json.loads(record.read_text())))
    assert reproduce("--rows=se", "--seeds=1")[0] == 0
    assert filed.exists()
    assert record.read_text() == written_anew

    # Without its weights a run cannot be evaluated. The command does not repeat the training.
    filed.unlink()
    shutil.rmtree(tmp_path / "runs")
    code, _, err = reproduce("--rows=se", "--seeds=1")
    assert (code, len(launches())) == (1, 1)
    assert "evaluate.py needs its weights" in err


def begun(place):
    """Whether a training has written its first checkpoint."""
    return lambda: any(place.runs.glob("*/last.ckpt"))


def test_a_training_begun_by_another_suite_is_continued(plan, place, scripts, launches):
    (job,) = plan(["se"])
    (scripts / "wait").touch()
    assert run_row(job, place, math.inf, begun(place)).ending == "cut off"
    (scripts / "wait").unlink()
    (other,) = plan(["again"])
    assert other.name == "table-se-full-0"
    assert run_row(other, place, math.inf).ending == "finished"
    assert launches() == ["table-se-full-0 begun", "table-se-full-0 resumed"]


def test_a_repeated_training_counts_if_finished_and_other_folders_do_not(plan, place, suite):
    row = suite.rows["se"]
    config = yaml.safe_dump(resolve_config(row.flags("full", 0)))
    for name, file in (("a", "last.ckpt"), ("b", "result.json"), ("c", "last.ckpt")):
        (place.runs / name).mkdir(parents=True)
        (place.runs / name / "config.yaml").write_text(config)
        (place.runs / name / file).touch()
    strange = {
        "another_branch": "arch: a_net\nseed: 0\n",
        "empty": "",
        "half": "arch: [",
        "no_seed": "arch: resnet\n",
    }
    for name, text in strange.items():
        (place.runs / name).mkdir()
        (place.runs / name / "config.yaml").write_text(text)
        (place.runs / name / "last.ckpt").touch()
    (place.runs / "bare").mkdir()
    (place.runs / "bare" / "last.ckpt").touch()
    assert begun_runs(place.runs) == {(training_of_row(row, "full"), 0): "b"}
    assert names(plan(["se"])) == ["b"]


@pytest.fixture
def taught(tmp_path, scripts, record_of):
    """A suite whose row plain teaches se, and the records that the fake run.py writes."""
    rows = {name: SUITE["rows"][name] for name in ("plain", "se")}
    rows["se"] = rows["se"] | {"teacher": "plain"}
    path = tmp_path / "taught.yaml"
    path.write_text(yaml.safe_dump(SUITE | {"rows": rows, "claims": []}, sort_keys=False))
    suite = load_suite(path)
    plain, se = (suite.rows[name].flags("full", 0) for name in ("plain", "se"))
    records = {
        "resnet0": record_of(plain, name="taught-plain-full-0", weights_digest="0" * 16),
        "sam_resnet0": record_of(
            [*se, f"--teacher=runs/taught-plain-full-0@{'0' * 16}"],
            name="taught-se-full-0",
            finished="2026-01-02T00:00:00+00:00",
        ),
    }
    for name, record in records.items():
        write_record(record, scripts / name)
    return suite


def test_a_teacher_is_trained_before_its_student_even_without_being_named(
    taught, reproduce, launches, tmp_path
):
    command = ("--rows=se", "--seeds=1", "--rows-at-once=2")
    code, _, errors = reproduce(*command, suite="taught.yaml")
    assert (code, errors) == (0, "")
    assert launches() == [
        "taught-plain-full-0 begun",
        "taught-se-full-0 begun by runs/taught-plain-full-0",
    ]
    results = load_results(tmp_path / "results")
    assert list(results.of_row(taught.rows["se"], "full")) == [0]
    _, out, _ = reproduce(*command, suite="taught.yaml")
    assert "Nothing is left to train" in out
    assert len(launches()) == 2


def test_a_teacher_without_its_folder_is_one_line(taught, reproduce, launches, tmp_path, place):
    assert reproduce("--rows=plain", "--seeds=1", suite="taught.yaml")[0] == 0
    shutil.rmtree(place.runs / "taught-plain-full-0")
    code, _, errors = reproduce("--rows=se", "--seeds=1", suite="taught.yaml")
    assert code == 1
    (line,) = errors.splitlines()
    assert line.startswith("failed: taught-se-full-0: its teacher, the row plain with seed 0, has")
    assert launches() == ["taught-plain-full-0 begun"]


def test_a_student_of_a_failed_teacher_is_not_trained(taught, reproduce, scripts, launches):
    (scripts / "fail").write_text("no memory")
    code, _, errors = reproduce("--seeds=1", suite="taught.yaml")
    assert code == 1
    assert len(errors.splitlines()) == 2
    assert launches() == ["taught-plain-full-0 begun"]


def test_the_folder_of_records_is_printed(reproduce):
    _, out, _ = reproduce("--rows=se", "--seeds=1")
    assert "There are no records yet: the folder results is made" in out
    _, out, _ = reproduce("--rows=se", "--seeds=1")
    assert "There are no records" not in out


def test_two_simultaneous_runners_train_nothing_twice(plan, place, launches):
    jobs = plan(seeds=2)
    again = plan(["again", "plain"], seeds=2)
    end = math.inf
    with ThreadPoolExecutor() as threads:
        both = [
            threads.submit(execute, x, Here(place, end), end, Event(), lambda: None, lambda _: None)
            for x in (jobs, again)
        ]
    for runner in both:
        assert {outcome.ending for outcome in runner.result()} == {"finished"}
    assert sorted(line.split("-")[3] for line in launches()) == ["0 begun"] * 2 + ["1 begun"] * 2
    assert len(records_in(place.results)) == 4


def test_a_training_outlives_no_runner_and_its_lock_no_training(plan, place, scripts):
    """If the runner is killed, Linux asks the training to end; until then its lock is held."""
    (job,) = plan(["se"])
    (scripts / "wait").touch()
    # Fork, because a new process imports torch for seconds.
    runner = get_context("fork").Process(target=run_row, args=(job, place, math.inf))
    runner.start()
    while not (place.runs / job.name / "last.ckpt").exists():
        assert runner.is_alive()
        time.sleep(0.01)
    assert run_row(job, place, math.inf).ending == "taken"
    runner.kill()
    runner.join()
    (scripts / "wait").unlink()
    while (outcome := run_row(job, place, math.inf)).ending == "taken":
        pass
    assert outcome.ending == "finished"


def test_the_time_limit_ends_the_training_and_starts_no_other(
    reproduce, place, scripts, launches, monkeypatch
):
    clock, is_begun = time.time, begun(place)
    (scripts / "wait").touch()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: clock() + 3600 * is_begun())
        code, out, _ = reproduce("--rows=plain,se", "--seeds=1", "--budget-minutes=30")
    assert code == 0
    assert launches() == ["table-plain-full-0 begun"]
    assert "0 finished, 0 failed, 2 left, full scale" in out
    (scripts / "wait").unlink()
    code, out, _ = reproduce("--rows=plain,se", "--seeds=1")
    assert code == 0
    assert launches()[1:] == ["table-plain-full-0 resumed", "table-se-full-0 begun"]
    assert "2 finished, 0 failed, 0 left" in out


def test_a_signal_ends_it_as_the_time_does(reproduce, place, scripts, launches):
    def send():
        while not begun(place)():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    (scripts / "wait").touch()
    with ThreadPoolExecutor() as threads:
        threads.submit(send)
        code, out, _ = reproduce("--rows=plain,se", "--seeds=1")
    assert (code, len(launches())) == (0, 1)
    assert "2 left" in out


def test_rows_at_once_train_together_and_share_the_processors(
    reproduce, place, scripts, monkeypatch
):
    """Each training waits until the other has begun; one after the other, they would never end."""
    monkeypatch.setattr(engine, "processors", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    meet = """
import os
(folder / "threads").write_text(os.environ["OMP_NUM_THREADS"])
while len(list(folder.parent.glob("*/threads"))) < 2:
    time.sleep(0.05)
"""
    wait = 'if (here / "wait").exists():'
    (scripts / "run.py").write_text(RUN.replace(wait, meet + wait))
    code, out, _ = reproduce("--rows=plain,se", "--seeds=1", "--rows-at-once=2")
    assert code == 0
    assert "2 finished" in out
    assert [x.read_text() for x in place.runs.glob("*/threads")] == ["3", "3"]


def test_a_row_that_fails_does_not_stop_the_others(reproduce, scripts):
    (scripts / "fail").write_text("no such luck")
    code, out, err = reproduce("--rows=plain,se", "--seeds=1")
    assert code == 1
    assert "1 finished, 1 failed, 0 left" in out
    (line,) = err.splitlines()
    assert line.startswith("failed: table-plain-full-0: RuntimeError: no such luck (exit code 1")


def test_a_full_disk_leaves_no_half_written_file(reproduce, scripts, tmp_path):
    (scripts / "fail").write_text(f"OSError: [Errno 28] {os.strerror(28)}")
    code, _, err = reproduce("--rows=plain,se", "--seeds=1")
    assert code == 2
    assert err.startswith("error: table-plain-full-0: RuntimeError: OSError: [Errno 28] No space")
    (scripts / "fail").unlink()

    # Every write to /dev/full fails as on a full disk.
    partial = tmp_path / "results" / "claims" / "table-plain-full-0.json.partial"
    partial.parent.mkdir(parents=True)
    partial.symlink_to("/dev/full")
    code, _, err = reproduce("--rows=plain", "--seeds=1")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert list(partial.parent.iterdir()) == []
    assert reproduce("--rows=plain", "--seeds=1")[0] == 0
    assert list(records_in(partial.parent)) == ["table-plain-full-0.json"]


@pytest.mark.parametrize(
    ("flags", "named", "message"),
    [
        (["--rows=plane"], "table.yaml", "--rows plane is unknown (did you mean plain?)"),
        ([], "sam_resnet_tabel1", "is not a suite (did you mean sam_resnet_table1 or"),
        ([], "absent.yaml", "absent.yaml cannot be read"),
        ([], "broken.yaml", "broken.yaml, line 5: rows.a.title is missing"),
        ([], "", "name a SUITE, or --table"),
        (["--rows-at-once=0"], "table.yaml", "--rows-at-once must be above 0, got 0"),
        (["--ray=auto", "--rows-at-once=2"], "table.yaml", "--rows-at-once is for this machine"),
        (["--seeds=0"], "table.yaml", "--seeds must be above 0, got 0"),
        (["--budget-minutes=-1"], "table.yaml", "--budget-minutes must be above 0, got -1"),
        (["--budget-minutes=nan"], "table.yaml", "--budget-minutes must be above 0, got nan"),
        (["--scale=tiny"], "table.yaml", "invalid choice: 'tiny'"),
        (["--gpus-per-row=-1"], "table.yaml", "--gpus-per-row must be 0 or more, got -1"),
        (["--rows=plain", "--table"], "", "--rows plain needs a SUITE, such as"),
        (["--seeds=1001"], "table.yaml", "--seeds must be at most 1,000, got 1001"),
        (["--results=typo", "--dry-run"], "table.yaml", "--results typo does not exist"),
        (["--results=typo", "--table"], "", "--results typo does not exist"),
        (["--results=table.yaml"], "table.yaml", "--results table.yaml must be a folder: table"),
        (["--output=table.yaml/runs"], "table.yaml", "--output table.yaml/runs must be a folder"),
        (["--ray=auto"], "table.yaml", "--ray needs the package ray: install it with"),
    ],
)
def test_mistakes_give_one_line(reproduce, launches, monkeypatch, tmp_path, flags, named, message):
    monkeypatch.setitem(sys.modules, "ray", None)
    text = "title: x\npaper: y\nclaims: []\nrows:\n  a: {arch: resnet}\n"
    (tmp_path / "broken.yaml").write_text(text)
    code, _, err = reproduce(*flags, suite=named)
    assert (code, len(err.splitlines()), launches()) == (2, 1, [])
    assert message in err


def test_a_record_with_an_edited_configuration_is_rejected(reproduce, tmp_path):
    assert reproduce("--rows=se", "--seeds=1")[0] == 0
    path = tmp_path / "results" / "claims" / "table-se-full-0.json"
    path.write_text(path.read_text().replace('"max_epochs": 3', '"max_epochs": 2'))
    code, _, err = reproduce("--rows=se", "--seeds=1")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "was edited" in err


def test_a_changed_row_overwrites_nothing(reproduce, tmp_path):
    assert reproduce("--rows=se", "--seeds=1")[0] == 0
    suite = tmp_path / "table.yaml"
    suite.write_text(suite.read_text().replace("trainer.max_epochs: 3", "trainer.max_epochs: 5"))
    code, _, err = reproduce("--rows=se", "--seeds=1")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "table-se-full-0 has other settings than the row with this name" in err
    shutil.rmtree(tmp_path / "results")
    code, _, err = reproduce("--rows=se", "--seeds=1")
    assert (code, "has other settings" in err) == (2, True)


@pytest.mark.parametrize(
    ("scale", "sam"), [("full", []), ("mini", []), ("full", ["--model.sharpness=sam"])]
)
def test_a_dry_run_shows_the_plan_and_trains_nothing(
    reproduce, launches, tmp_path, record_of, scale, sam
):
    # A larger network was trained for 1,000 steps in two hours; SAM has two gradients per step.
    flags = ["--arch=resnet", "--model.base_width=128", "--trainer.max_steps=1000"]
    precision = resolve_precision("auto", "cpu")
    here = {"device": describe_device(), "precision": precision}
    record = record_of([*flags, *sam], **here, name="known", training_seconds=7200.0)
    (tmp_path / "results").mkdir()
    write_record(record, tmp_path / "results" / "known.json")

    code, out, _ = reproduce("--rows=plain", "--dry-run", "--seeds=2", f"--scale={scale}")
    assert (code, launches()) == (0, [])
    assert "2 missing runs" in out
    assert ("MINI scale" in out) == (scale == "mini")
    assert ("full scale" in out) == (scale == "full")
    # A backward pass costs two forward passes; an epoch has 351 batches of 128 images.
    operations = 3 * baseline_operations(64) * 351 * 128 * (4 if scale == "full" else 2)
    lines = [line for line in out.splitlines() if f"table-plain-{scale}-" in line]
    done = 3 * baseline_operations(128) * 1000 * 128 * (2 if sam else 1)
    seconds = operations * 7200 / done
    for line in lines:
        assert f" {operations:.2g} " in line
        assert f" {duration(seconds)} " in line
    assert len(lines) == out.count("time from known") == 2


def baseline_operations(base):
    """Operations per image of SAMResNet's baseline at this width, counted by hand."""
    operations, width, size = 2 * 9 * 3 * base * 32**2, base, 32
    for blocks, out in ((4, base), (4, 2 * base), (3, 4 * base)):
        if out != width:
            size //= 2
            operations += 2 * width * out * size**2  # the shortcut
        operations += 2 * 9 * (width * out + (2 * blocks - 1) * out**2) * size**2
        width = out
    return operations + 2 * 4 * base * 10


def test_without_a_record_of_this_network_on_this_device_a_step_is_measured(record_of):
    device = describe_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    elsewhere = record_of(["--arch=resnet"], device="another", precision="32-true")
    of_another = record_of(["--arch=wide_resnet"], device=device, precision="32-true")
    flags = ["--arch=resnet", "--model.base_width=4", "--trainer.accelerator=cpu"]
    config = resolve_config([*flags, "--trainer.precision=32-true"])
    seconds, basis = Stopwatch([elsewhere, of_another]).seconds(config)
    assert basis is None
    # Seconds per step of 200 epochs with 351 steps.
    assert 1e-4 < seconds / (200 * 351) < 60


def test_measurements_are_shown_with_their_scale(reproduce):
    reproduce("--rows=plain,se", "--seeds=2")
    code, out, _ = reproduce("--rows=plain,se", "--seeds=2")
    assert code == 0
    assert "Nothing is left to train, full scale" in out
    assert "Claims, full scale" in out
    assert "+0.00 ± 0.00" in out
    assert "2 + 2" in out


def test_curves_with_an_incomplete_last_line_can_be_read(tmp_path):
    assert steps_done(tmp_path) == 0
    for text, steps in (
        ("", 0),
        ("epoch,step\n", 0),
        ("epoch,step\n0,49\n,9", 50),
        ("a,step\n0", 0),
    ):
        (tmp_path / "metrics.csv").write_text(text)
        assert steps_done(tmp_path) == steps


def test_a_lock_is_free_again_when_its_holder_is_gone(tmp_path):
    path = tmp_path / "locks" / "a"
    with lock(path) as first, lock(path) as second:
        assert first is not None
        assert second is None
    with lock(path) as third:
        assert third is not None
