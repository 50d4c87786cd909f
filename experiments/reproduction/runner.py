"""Train a row in a process of `run.py`, and copy its record to the results."""

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
# On Linux the training gets SIGTERM when its runner dies. On other systems it continues, and keeps
# its lock.
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
    """The folders of a plan; they are the same on every machine of a cluster."""

    runs: Path  # folder of run folders
    results: Path  # folder of records
    cwd: Path = field(default_factory=Path.cwd)  # working folder of the processes
    scripts: Path = ROOT / "experiments"  # of run.py and evaluate.py
    threads: int | None = None  # CPU threads of a process; None leaves the choice to torch


@dataclass(frozen=True)
class Outcome:
    """How a job ended, and why."""

    job: Job
    ending: Literal["finished", "cut off", "failed", "taken", "full disk"]
    reason: str = ""


@contextmanager
def lock(path: Path) -> Iterator[int | None]:
    """Lock a file, and yield the lock's descriptor; None if it is locked already.

    A process that inherits the descriptor also holds the lock. If a runner dies, its training
    continues and stays locked, so no other runner begins it. The system frees the lock of a killed
    process.
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
    """Train a row, or continue its training, and copy its record to the results.

    At `deadline` (seconds since 1970), or if `stopped` returns true, the training writes a
    checkpoint and ends. A row that another process trains is "taken".
    """

    def in_time() -> bool:
        return time.time() < deadline and not stopped()

    try:
        with lock(place.runs / ".locks" / job.key) as held:
            if held is None:
                time.sleep(1)
                return Outcome(job, "taken")
            # Another runner may have begun the same training under another name.
            begun = begun_runs(place.runs)
            name = begun.get((job.training, job.seed), job.name)
            folder = place.runs / name
            record, evaluation = folder / "result.json", folder / "evaluation.json"
            teacher = begun.get((job.teacher.training, job.teacher.seed)) if job.teacher else None
            if reason := _lacking(job, folder, teacher):
                return Outcome(job, "failed" if in_time() else "cut off", reason)
            steps = {record: _training(job, name, place, teacher)}
            if job.evaluates:
                steps[evaluation] = _evaluation(name, place)
            for file, command in steps.items():
                if file.exists():
                    continue
                if not in_time():
                    return Outcome(job, "cut off")
                code = _call(command, folder / "output.txt", place, held, in_time)
                if not file.exists():
                    return _unfinished(job, code, folder / "output.txt", in_time())
            if not job.trained:  # else the record is in the results already
                file_away(record, place.results / f"{name}.json")
            if job.evaluates:
                file_away(evaluation, place.results / "evaluations" / f"{name}.json")
    except OSError as error:
        return Outcome(job, "full disk" if error.errno in FULL_DISK else "failed", str(error))
    return Outcome(job, "finished")


def _lacking(job: Job, folder: Path, teacher: str | None) -> str | None:
    """Return the reason why a job cannot begin: missing weights, or None."""
    finished = (folder / "result.json").exists()
    if job.trained and not finished:
        return (
            f"evaluate.py needs its weights, but {folder} does not contain them: copy that "
            "folder to this machine, or remove the record to train the row again"
        )
    has_teacher = teacher is not None and (folder.parent / teacher / "result.json").exists()
    if job.teacher is None or finished or has_teacher:
        return None
    return (
        f"its teacher, the row {job.teacher.row} with seed {job.teacher.seed}, has no finished run "
        f"in {folder.parent}: copy its folder to there, or remove its record to train it again"
    )


def _training(job: Job, name: str, place: Workplace, teacher: str | None) -> list[str]:
    resumes = (place.runs / name / "last.ckpt").exists()
    runs = os.path.relpath(place.runs, place.cwd)
    return [
        os.path.relpath(place.scripts / "run.py", place.cwd),
        *job.flags,
        f"--name={name}",
        f"--output={runs}",
        *([f"--teacher={runs}/{teacher}"] if teacher else []),
        "--wandb=disabled",
        *(["--ckpt_path=last"] if resumes else []),
    ]


def _evaluation(name: str, place: Workplace) -> list[str]:
    script = os.path.relpath(place.scripts / "evaluate.py", place.cwd)
    return [script, os.path.relpath(place.runs / name, place.cwd)]


def _call(
    command: list[str], output: Path, place: Workplace, held: int, in_time: Callable[[], bool]
) -> int:
    """Run a Python script, with SIGTERM at the deadline; return its exit code."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", encoding="utf-8") as file:
        print("$ python", *command, file=file, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-c", LEASH, str(os.getpid()), sys.executable, *command],
            cwd=place.cwd,
            env=os.environ | ({"OMP_NUM_THREADS": str(place.threads)} if place.threads else {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=[held],
            start_new_session=True,  # the runner handles Ctrl-C
        )
    try:
        while process.poll() is None and in_time():
            time.sleep(0.2)
    finally:  # also if Ray cancels the task
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
    return process.wait()


def _unfinished(job: Job, code: int, output: Path, in_time: bool) -> Outcome:
    """The outcome of a process that ended without a record."""
    lines = [
        line for line in output.read_text("utf-8", errors="replace").splitlines() if line.strip()
    ]
    reason = f"{lines[-1].strip()} (exit code {code}, see {output})"
    if any(os.strerror(number) in lines[-1] for number in FULL_DISK):
        return Outcome(job, "full disk", reason)
    # After SIGTERM Lightning ends with 0.
    return Outcome(job, "failed" if code > 0 or (code < 0 and in_time) else "cut off", reason)


def file_away(written: Path, path: Path) -> None:
    """Copy a record to the results; OSError if another record has its name."""
    content = written.read_text("utf-8")
    if path.exists() and path.read_text("utf-8") != content:
        raise FileExistsError(f"{path} differs from {written}: rename one of them")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
