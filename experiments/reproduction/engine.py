"""Execute a plan: call `run_row` for each job, on this machine or on a cluster."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from threading import Event
from typing import Protocol

from experiments.records.provenance import processors
from experiments.reproduction.plan import Job
from experiments.reproduction.runner import Outcome, Workplace, run_row


class Engine(Protocol):
    """Calls `run_row` for jobs."""

    def submit(self, job: Job) -> Future[Outcome]:
        """Call `run_row` as soon as there is room."""

    def outcome(self, call: Future[Outcome], job: Job) -> Outcome:
        """The outcome of an ended call."""

    def stop(self) -> None:
        """Ask all calls to write a checkpoint and to end."""


class Here:
    """Trains `rows_at_once` rows at the same time on this machine.

    Each row gets an equal share of the processors as threads: two trainings on two cores reach 591
    images/s together with one thread each, and 305 with two threads each.
    """

    def __init__(self, place: Workplace, deadline: float, rows_at_once: int = 1) -> None:
        self.place, self.deadline = place, deadline
        if rows_at_once > 1:
            self.place = replace(place, threads=max(1, processors() // rows_at_once))
        self.stopped = Event()
        self.threads = ThreadPoolExecutor(max_workers=rows_at_once)

    def submit(self, job: Job) -> Future[Outcome]:
        return self.threads.submit(run_row, job, self.place, self.deadline, self.stopped.is_set)

    def outcome(self, call: Future[Outcome], job: Job) -> Outcome:
        return call.result()

    def stop(self) -> None:
        self.stopped.set()


def execute(
    jobs: Sequence[Job],
    engine: Engine,
    deadline: float,
    stop: Event,
    look: Callable[[], None],
    ended: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run jobs in their order until all have ended, and return their outcomes.

    All jobs end early at the deadline, if `stop` is set, or if the disk is full. `look` is called
    about once a second, and `ended` with each outcome. A job that another runner trains is tried
    again after all others. A job with a teacher begins after the teacher's job.
    """
    outcomes = []
    calls: dict[Future[Outcome], Job] = {}
    waiting = list(jobs)
    while calls or waiting:
        unfinished = {(job.training, job.seed) for job in (*waiting, *calls.values())}
        for job in list(waiting):
            if job.teacher is None or (job.teacher.training, job.teacher.seed) not in unfinished:
                waiting.remove(job)
                calls[engine.submit(job)] = job
        for call in wait(calls, 1, FIRST_COMPLETED).done:
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
