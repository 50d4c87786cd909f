"""One row: a process of `run.py` under a lock, until its record is filed."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from experiments.console import FULL_DISK
from experiments.records.provenance import ROOT
from experiments.records.record import write_atomically
from experiments.reproduction.plan import Job, begun_runs

#: seconds that a process has, after SIGTERM, to end its step and write its checkpoint
GRACE = 120
# Linux ends a process with SIGTERM when the one that started it dies, however it dies, if it is
# asked to. On other systems the training goes on, and its lock with it.
LEASH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the runner has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Workplace:
    """Where a plan is executed; the same paths on every machine that takes part."""

    runs: Path  # folder of run folders
    results: Path  # where records are filed
    cwd: Path = field(default_factory=Path.cwd)  # of the processes: relative paths are of there
    scripts: Path = ROOT / "experiments"  # of run.py and evaluate.py
    threads: int | None = None  # CPU threads of a process; None leaves the choice to torch


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job
    ending: Literal["finished", "cut off", "failed", "taken", "full disk"]
    reason: str = ""


@contextmanager
def lock(path: Path) -> Iterator[int | None]:
    """A file descriptor that holds the lock until it and all copies are closed; None if taken.

    A process that inherits it holds the lock too, so that a training which outlives its runner is
    left alone. The system frees the lock of a process that is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def run_row(
    job: Job, place: Workplace, deadline: float, stopped: Callable[[], bool] = lambda: False
) -> Outcome:
    """Train a row, or go on with it, and file its record: the same here and as a Ray task.

    At `deadline`, in seconds of the epoch, or once `stopped`, the training is asked to write a
    checkpoint and to end. A row that another process works on is "taken".
    """

    def go_on() -> bool:
        return time.time() < deadline and not stopped()

    try:
        with lock(place.runs / ".locks" / job.key) as held:
            if held is None:
                time.sleep(1)
                return Outcome(job, "taken")
            # Another runner may have begun the same training since, under another name.
            name = begun_runs(place.runs).get((job.training, job.seed), job.name)
            folder = place.runs / name
            record, evaluation = folder / "result.json", folder / "evaluation.json"
            if job.trained and not record.exists():
                reason = (
                    f"evaluate.py needs its weights, which are not in {folder}: bring that folder "
                    "here, or remove the record to train the row again"
                )
                return Outcome(job, "failed", reason)
            steps = {record: _training(job, name, place)}
            if job.evaluates:
                steps[evaluation] = _evaluation(name, place)
            for file, command in steps.items():
                if file.exists():
                    continue
                if not go_on():
                    return Outcome(job, "cut off")
                code = _call(command, folder / "output.txt", place, held, go_on)
                if not file.exists():
                    return _unfinished(job, code, folder / "output.txt", go_on())
            if not job.trained:  # else its record is where it was found
                file_away(record, place.results / f"{name}.json")
            if job.evaluates:
                file_away(evaluation, place.results / "evaluations" / f"{name}.json")
    except OSError as error:
        return Outcome(job, "full disk" if error.errno in FULL_DISK else "failed", str(error))
    return Outcome(job, "finished")


def _training(job: Job, name: str, place: Workplace) -> list[str]:
    resumes = (place.runs / name / "last.ckpt").exists()
    return [
        os.path.relpath(place.scripts / "run.py", place.cwd),
        *job.flags,
        f"--name={name}",
        f"--output={os.path.relpath(place.runs, place.cwd)}",
        "--wandb=disabled",
        "--trainer.enable_progress_bar=false",
        *(["--ckpt_path=last"] if resumes else []),
    ]


def _evaluation(name: str, place: Workplace) -> list[str]:
    script = os.path.relpath(place.scripts / "evaluate.py", place.cwd)
    return [script, os.path.relpath(place.runs / name, place.cwd)]


def _call(
    command: list[str], output: Path, place: Workplace, held: int, go_on: Callable[[], bool]
) -> int:
    """Run a Python script to its end, or ask it to end once it may not go on; its exit code."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a") as file:
        print("$ python", *command, file=file, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-c", LEASH, str(os.getpid()), sys.executable, *command],
            cwd=place.cwd,
            env=os.environ | ({"OMP_NUM_THREADS": str(place.threads)} if place.threads else {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=[held],
            start_new_session=True,  # Ctrl-C is the runner's to handle
        )
    try:
        while process.poll() is None and go_on():
            time.sleep(0.2)
    finally:  # also where Ray cancels the task
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
    return process.wait()


def _unfinished(job: Job, code: int, output: Path, may_go_on: bool) -> Outcome:
    """What a process means that ended without a record."""
    lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    reason = f"{lines[-1].strip()} (exit code {code}, see {output})"
    if any(os.strerror(number) in lines[-1] for number in FULL_DISK):
        return Outcome(job, "full disk", reason)
    # Asked to end, by us or by another, Lightning ends with 0.
    return Outcome(job, "failed" if code > 0 or (code < 0 and may_go_on) else "cut off", reason)


def file_away(written: Path, path: Path) -> None:
    """Copy a record to where records lie; OSError where another record has its name."""
    content = written.read_text()
    if path.exists() and path.read_text() != content:
        raise FileExistsError(f"{path} is another record than {written}: rename one of them")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
