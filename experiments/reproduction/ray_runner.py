"""Train rows on a Ray cluster, whose machines share the run folders and this checkout."""

import socket
from concurrent.futures import Future
from logging import ERROR

import ray
from ray.exceptions import RayError, TaskCancelledError

from experiments.console import UserError
from experiments.records.provenance import ROOT
from experiments.reproduction.plan import Job
from experiments.reproduction.runner import Outcome, Workplace, run_row

#: times that a row is restarted from its checkpoint after its worker or machine was lost
RETRIES = 3


class RayCluster:
    """An engine that calls `run_row` on machines of a Ray cluster.

    UserError if there is no cluster, or if no machine has enough processors and GPUs.
    """

    def __init__(
        self, address: str, cpus: float, gpus: float | None, place: Workplace, deadline: float
    ) -> None:
        """
        Args:
            address: address of the cluster's head; "auto" is the cluster of this machine.
            cpus: processors for a row.
            gpus: GPUs for a row, also a fraction; None is 1 if the cluster has GPUs.
            place: folders of the plan, on every machine of the cluster.
            deadline: end of the time, in seconds since 1970.
        """
        try:
            _knock(address)
            # The workers import this checkout, whatever folder they were started in.
            environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
            ray.init(address, runtime_env=environment, log_to_driver=False, logging_level=ERROR)
        except (OSError, ValueError, RayError) as error:
            raise UserError(
                f"--ray {address}: no Ray cluster answers ({error}). `ray start --head` starts one "
                "and prints its address"
            ) from None
        if gpus is None:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(x.get("CPU", 0) >= cpus and x.get("GPU", 0) >= gpus for x in machines):
            raise UserError(
                f"--ray {address}: no machine of the cluster has {cpus:g} CPUs and {gpus:g} GPUs"
            )
        self.task = ray.remote(run_row).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=False
        )
        self.place, self.deadline = place, deadline
        self.calls: list[ray.ObjectRef] = []
        self.stopped = False

    def submit(self, job: Job) -> Future[Outcome]:
        call = self.task.remote(job, self.place, self.deadline)
        self.calls.append(call)
        return call.future()

    def outcome(self, call: Future[Outcome], job: Job) -> Outcome:
        try:
            return call.result()
        except TaskCancelledError:
            return Outcome(job, "cut off")
        except RayError as error:
            return Outcome(job, "failed", " ".join(str(error).split()))

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            for call in self.calls:
                # The task gets a KeyboardInterrupt and ends its training.
                ray.cancel(call)


def _knock(address: str) -> None:
    """Raise OSError or ValueError if nothing listens: Ray would wait for minutes."""
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host, int(port)), timeout=10).close()
