"""Many runs at once, and a long run; takes minutes, `-m trust`.

`ROWS=200 python -m pytest -m trust -k two_ray_workers` trains 200 rows; the default is 8.
"""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from experiments.claims.matching import load_results
from experiments.records.record import read_record

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "tiny_scripts"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
#: rows of the suite; a row takes 10 to 20 seconds on one core, and most of it is imports
ROWS = int(os.environ.get("ROWS", "8"))


@pytest.mark.trust
def test_eight_runs_at_once_write_eight_records(tiny, tmp_path):
    """All runs share the output folder and have no --name."""
    flags = [x for x in tiny() if not x.startswith(("--name=", "--output="))]
    command = [sys.executable, SCRIPTS / "run.py", *flags, f"--output={tmp_path}"]
    runs = [
        subprocess.Popen(
            [*command, f"--seed={seed}"], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        for seed in range(8)
    ]
    for run in runs:
        _, errors = run.communicate()
        assert run.returncode == 0, errors
    records = [read_record(path) for path in tmp_path.glob("*/result.json")]
    assert sorted(record.seed for record in records) == list(range(8))
    assert {record.name for record in records} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.trust
def test_a_suite_on_two_ray_workers_records_each_row_once(tmp_path):
    cluster = pytest.importorskip("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0}
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        suite = tmp_path / "suite.yaml"
        text = (SCRIPTS / "suite.yaml").read_text()
        suite.write_text(
            text.replace("batches: 20", "batches: 1").replace("epochs: 8", "epochs: 1")
        )
        flags = [suite, f"--seeds={ROWS // 2}", "--results=results", f"--ray={cluster.address}"]
        done = subprocess.run(
            [sys.executable, SCRIPTS / "reproduce.py", *flags],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stderr
    assert f"{ROWS} finished, 0 failed, 0 left" in done.stdout
    records = load_results(tmp_path / "results").records
    # The suite has two rows per seed.
    assert sorted(x.seed for x in records) == sorted([*range(ROWS // 2)] * 2)
    assert len({x.name for x in records}) == ROWS
    launches = [path.read_text() for path in tmp_path.glob("runs/*/commands.txt")]
    assert [text.count("\n") for text in launches] == [1] * ROWS


class Resources(Callback):
    """Memory in bytes and open files of this process, after certain steps."""

    def __init__(self, *steps):
        self.steps, self.memory, self.files = steps, [], []

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step in self.steps and len(self.memory) < len(self.steps):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
            self.files.append(len(os.listdir("/proc/self/fd")))


@pytest.mark.trust
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_and_open_files_of_a_long_run_stay_flat(experiment):
    """A leak grows in each 500 steps. The allocator may also grow, but not in all of them."""
    resources = Resources(500, 1000, 1500, 2000)
    flags = ("--trainer.max_steps=2000", "--trainer.max_epochs=-1", "--test=false")
    flags = (
        *flags,
        "--wandb=offline",
        "--trainer.limit_train_batches=50",
        "--trainer.limit_val_batches=1",
    )
    experiment(*flags, callbacks=[resources])
    memory, files = resources.memory, resources.files
    print(f"memory in bytes after {resources.steps} steps: {memory}; open files: {files}")
    assert min(after / before for before, after in pairwise(memory)) < 1.003
    assert files[0] == files[-1]
