"""Rows as tasks of a local cluster of two machines; takes minutes, `-m slow`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.claims.matching import load_results
from experiments.console import UserError
from experiments.reproduction.runner import Workplace

pytest.importorskip("ray")
from ray.cluster_utils import Cluster

from experiments.reproduction.ray_runner import RayCluster

SCRIPTS = Path(__file__).parent / "tiny_scripts"
ROOT = Path(__file__).parents[2]
KILLED = "suite-se-full-0"


@pytest.fixture(scope="module")
def cluster():
    """A cluster: a head without processors, and two nodes with one processor each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def start(folder, *flags):
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPTS / "reproduce.py", SCRIPTS / "suite.yaml", "--seeds=1"]
    return subprocess.Popen(
        [*command, "--results=results", *flags],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def parent_of(text):
    """The parent of the process with this text in its command; None if there is none."""
    for line in subprocess.check_output(["ps", "-wweo", "ppid=,args="], text=True).splitlines():
        parent, _, command = line.strip().partition(" ")
        if text in command:
            return int(parent)
    return None


def scores(folder):
    return {x.name: (x.scores, x.train_accuracy) for x in load_results(folder / "results").records}


@pytest.mark.trust
def test_a_row_continues_after_its_worker_was_killed(cluster, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    undisturbed = start(here)
    assert undisturbed.wait() == 0, undisturbed.stderr.read()

    driver = start(there, f"--ray={cluster.address}")
    run = there / "runs" / KILLED
    while not (run / "last.ckpt").exists():
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.05)
    worker = parent_of(f"--name={KILLED}")
    assert worker is not None
    name = Path(f"/proc/{worker}/cmdline").read_text()
    assert name.startswith("ray::")
    os.kill(worker, signal.SIGKILL)
    output, errors = driver.communicate()
    assert driver.returncode == 0, errors
    assert "2 finished, 0 failed, 0 left" in output

    first, *later = (run / "commands.txt").read_text().splitlines()
    assert "--ckpt_path" not in first
    assert len(later) == 1
    assert "--ckpt_path=last" in later[0]
    assert scores(there) == scores(here)
    assert len(scores(there)) == 2


@pytest.mark.trust
def test_a_signal_ends_rows_on_the_cluster_with_a_checkpoint(cluster, tmp_path):
    driver = start(tmp_path, f"--ray={cluster.address}")
    run = tmp_path / "runs" / KILLED
    while not (run / "last.ckpt").exists():
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.05)
    driver.terminate()
    output, errors = driver.communicate()
    assert driver.returncode == 0, errors
    assert "0 failed" in output
    assert f"{KILLED}: cut off" in output
    assert parent_of(f"--name={KILLED}") is None
    assert not (run / "result.json").exists()


@pytest.mark.trust
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ray=ADDRESS", "--gpus-per-row=0.5"], "has 1 CPUs and 0.5 GPUs"),
        (["--ray=ADDRESS", "--cpus-per-row=64"], "has 64 CPUs and 0 GPUs"),
    ],
)
def test_an_unsuitable_cluster_gives_one_line(cluster, tmp_path, flags, message):
    driver = start(tmp_path, *(flag.replace("ADDRESS", cluster.address) for flag in flags))
    _, errors = driver.communicate()
    assert driver.returncode == 2
    assert len(errors.splitlines()) == 1, errors
    assert message in errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:1"])
def test_an_address_without_a_cluster_is_rejected_at_once(address, tmp_path):
    place = Workplace(tmp_path, tmp_path)
    with pytest.raises(UserError, match=f"--ray {address}: no Ray cluster answers"):
        RayCluster(address, 1, None, place, deadline=0)
