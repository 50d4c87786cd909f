"""Execute a plan: `run_row` for each of its jobs, here or wherever an engine calls it."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from threading import Event
from typing import Any, Protocol

from experiments.reproduction.plan import Job
from experiments.reproduction.runner import Outcome, Workplace, run_row


class Engine(Protocol):
    """Something that calls `run_row`, and gives a handle to each call."""

    def submit(self, job: Job) -> Any:
        """Call it as soon as there is room."""

    def done(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Those of some calls that have ended, after a while at the latest."""

    def outcome(self, call: Any, job: Job) -> Outcome:
        """What a call that has ended gave."""

    def stop(self) -> None:
        """Have all calls end soon, with a checkpoint."""


class Here:
    """Rows on this machine, so many at once, which share its processors.

    On two cores, two trainings with one thread each reach 591 images/s together, and with two
    threads each 305.
    """

    def __init__(self, place: Workplace, deadline: float, rows_at_once: int = 1) -> None:
        self.place, self.deadline = place, deadline
        if rows_at_once > 1:
            self.place = replace(place, threads=max(1, processors() // rows_at_once))
        self.stopped = Event()
        self.threads = ThreadPoolExecutor(max_workers=rows_at_once)

    def submit(self, job: Job) -> Future[Outcome]:
        return self.threads.submit(run_row, job, self.place, self.deadline, self.stopped.is_set)

    def done(self, calls: Sequence[Future[Outcome]], seconds: float) -> Sequence[Future[Outcome]]:
        return list(wait(calls, seconds, FIRST_COMPLETED).done)

    def outcome(self, call: Future[Outcome], job: Job) -> Outcome:
        return call.result()

    def stop(self) -> None:
        self.stopped.set()


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def execute(
    jobs: Sequence[Job],
    engine: Engine,
    deadline: float,
    stop: Event,
    look: Callable[[], None],
    ended: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run jobs in their order until all have ended; one outcome for each.

    All end soon once the time is up, `stop` is set or the disk is full. `look` is called about once
    a second, and `ended` with each outcome as it comes. What another runner trains is waited for:
    it is tried again behind everything else.
    """
    outcomes = []
    calls = {engine.submit(job): job for job in jobs}
    while calls:
        for call in engine.done(list(calls), seconds=1):
            job = calls.pop(call)
            outcome = engine.outcome(call, job)
            if outcome.ending == "taken" and time.time() < deadline and not stop.is_set():
                calls[engine.submit(job)] = job
                continue
            outcomes.append(outcome)
            ended(outcome)
            if outcome.ending == "full disk":
                stop.set()
        if stop.is_set():
            engine.stop()
        look()
    return outcomes
