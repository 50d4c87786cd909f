"""Progress of a runner: rows and epochs, with the remaining time."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from experiments.console import duration
from experiments.reproduction.plan import Job
from experiments.reproduction.runner import Outcome


def steps_done(folder: Path) -> int:
    """Number of training batches in a run's metrics.csv; 0 without the file."""
    try:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            steps = [row["step"] for row in csv.DictReader(file)]
    except FileNotFoundError:
        return 0
    # The last line may be half written.
    return max((int(step) + 1 for step in steps if step and step.isdecimal()), default=0)


def share_done(job: Job, runs: Path) -> float:
    """The finished share of a job's training, in [0, 1]."""
    return min(steps_done(runs / job.name) / job.steps, 1)


class Display:
    """Shows bars on a terminal, else a line for each epoch and each finished row."""

    def __init__(self, jobs: Sequence[Job], runs: Path, console: Console) -> None:
        self.jobs, self.runs, self.console = jobs, runs, console
        self.began = time.time()
        self.outcomes: dict[str, Outcome] = {}
        self.before = {job.name: share_done(job, runs) for job in jobs}
        self.since: dict[str, float] = {}  # first time at which a row was training
        self.epochs: dict[str, int] = {}  # the epoch shown last
        name, bar, text = "{task.description}", BarColumn(bar_width=20), "{task.fields[text]}"
        columns = (TextColumn(name), bar, TextColumn(text))
        self.bars = Progress(*columns, console=console, disable=not console.is_interactive)
        self.rows = self.bars.add_task(f"rows at {jobs[0].scale} scale", total=None, text="")
        self.bar_of: dict[str, TaskID] = {}

    def look(self) -> None:
        """Read and show the progress of the trainings."""
        for job in self.jobs:
            output = self.runs / job.name / "output.txt"
            begun = output.exists() and output.stat().st_mtime >= self.began
            if begun and job.name not in self.outcomes:
                self._show(job)
        total, done = sum(job.operations for job in self.jobs), sum(map(self._done, self.jobs))
        self.bars.update(self.rows, total=total, completed=done, text=self._rows())

    def ended(self, outcome: Outcome) -> None:
        """Show the end of a row."""
        name = outcome.job.name
        self.outcomes[name] = outcome
        if name in self.bar_of:
            self.bars.remove_task(self.bar_of.pop(name))
        if name in self.epochs or outcome.ending in ("finished", "failed"):
            self._say(f"{name}: {outcome.ending} ({self._rows()})")

    def _done(self, job: Job) -> float:
        """The finished operations of a job."""
        return job.operations * (job.name in self.outcomes or share_done(job, self.runs))

    def _rows(self) -> str:
        left = sum(job.operations - self._done(job) for job in self.jobs)
        now = sum(self._done(job) - job.operations * self.before[job.name] for job in self.jobs)
        text = _time_left(left, now, time.time() - self.began)
        finished = sum(outcome.ending == "finished" for outcome in self.outcomes.values())
        return f"{finished} of {len(self.jobs)} rows{text}"

    def _show(self, job: Job) -> None:
        share = share_done(job, self.runs)
        epoch = min(int(share * job.epochs) + 1, job.epochs)
        seconds = time.time() - self.since.setdefault(job.name, time.time())
        text = f"epoch {epoch} of {job.epochs}"
        text += _time_left(1 - share, share - self.before[job.name], seconds)
        if job.name not in self.bar_of:
            self.bar_of[job.name] = self.bars.add_task(job.name, total=1, text=text)
        self.bars.update(self.bar_of[job.name], completed=share, text=text)
        if epoch != self.epochs.get(job.name) and not self.console.is_interactive:
            self._say(f"{job.name}: {text}")
        self.epochs[job.name] = epoch

    def _say(self, text: str) -> None:
        scale = self.jobs[0].scale
        line = f"{time.strftime('%H:%M')} {scale}: {text}"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _time_left(left: float, done: float, seconds: float) -> str:
    """The remaining time at the speed so far, in words; empty without a speed."""
    return f", {duration(left * seconds / done)} left" if left > 0 and done > 0 else ""
