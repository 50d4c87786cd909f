"""A suite of real trainings that is killed many times; takes minutes, `-s` shows the kills."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments.claims.matching import load_results
from experiments.claims.suites import load_suite
from experiments.reporting.claims_page import render

SCRIPTS = Path(__file__).parent / "tiny_scripts"
ROOT = Path(__file__).parents[2]
SEEDS = 4
RUNS = {f"suite-{row}-full-{seed}" for row in ("plain", "se") for seed in range(SEEDS)}


def start(folder):
    command = [sys.executable, SCRIPTS / "reproduce.py", SCRIPTS / "suite.yaml", f"--seeds={SEEDS}"]
    folder.mkdir(exist_ok=True)
    # With one thread, sums always have the same order.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            [*command, "--results=results"],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
        )


def children(process):
    """The running child processes of a process."""
    lines = subprocess.check_output(["ps", "-eo", "ppid=,pid="], text=True).splitlines()
    return [int(pid) for ppid, pid in map(str.split, lines) if int(ppid) == process.pid]


def filed(folder):
    """The contents of the records, without times and commands."""
    found = {}
    for record in load_results(folder / "results").records:
        fields = asdict(record)
        del fields["config"]["ckpt_path"]  # it depends on the last command
        for name in ("command", "finished", "training_seconds", "digest"):
            del fields[name]
        found[record.name] = fields
    return found


def in_an_epoch(folder, since):
    """Whether a training has logged a step since then."""
    curves = folder.glob("runs/*/metrics.csv")
    return any(x.stat().st_mtime > since for x in curves if not (x.parent / "result.json").exists())


def table(folder):
    return render(load_results(folder / "results"), {"suite": load_suite(SCRIPTS / "suite.yaml")})


@pytest.mark.trust
def test_a_suite_killed_ten_times_ends_like_an_undisturbed_one(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    began = time.monotonic()
    assert start(undisturbed).wait() == 0
    seconds = time.monotonic() - began
    print(f"undisturbed: {len(RUNS)} trainings in {seconds:.0f} s")

    chance = random.Random(0)
    for number in range(10):
        process, began = start(killed), time.time()
        if number % 2:
            while not in_an_epoch(killed, began) and process.poll() is None:
                time.sleep(0.02)
            time.sleep(chance.uniform(0, seconds / len(RUNS) / 4))
        else:  # at any time, mostly during imports
            time.sleep(chance.uniform(0, seconds / len(RUNS)))
        delay = time.time() - began
        assert process.poll() is None, (killed / "output.txt").read_text()
        trainings = children(process)
        process.kill()
        if chance.random() < 0.5:  # as if the machine failed; else Linux ends the training
            for pid in trainings:
                os.kill(pid, signal.SIGKILL)
        process.wait()
        runs = list((killed / "runs").glob("*"))
        print(
            f"kill {number + 1} after {delay:.1f} s, {len(trainings)} training under way, "
            f"{sum((run / 'last.ckpt').exists() for run in runs)} with a checkpoint, "
            f"{len(list((killed / 'results').rglob('*.json')))} records"
        )
        for path in (killed / "results").rglob("*.json"):
            assert path.stem in filed(killed)
    assert start(killed).wait() == 0

    assert set(filed(killed)) == RUNS
    first, second = filed(killed), filed(undisturbed)
    different = [
        (run, name, value, second[run][name])
        for run, fields in first.items()
        for name, value in fields.items()
        if value != second[run][name]
    ]
    assert different == []
    assert table(killed) == table(undisturbed)
    names = {path.name for path in (killed / "results").rglob("*") if path.is_file()}
    assert names == {f"{run}.json" for run in RUNS}
    launches = {
        run: (killed / "runs" / run / "commands.txt").read_text().splitlines() for run in RUNS
    }
    print("launches:", {run: len(lines) for run, lines in sorted(launches.items())})
    assert any("--ckpt_path=last" in line for lines in launches.values() for line in lines)
    # No row is left to train.
    assert start(killed).wait() == 0
    again = {run: (killed / "runs" / run / "commands.txt").read_text() for run in RUNS}
    assert again == {run: "\n".join(lines) + "\n" for run, lines in launches.items()}
