"""The rank of this process in its run, read from the environment before torch is imported.

Lightning starts one process per device: it runs the command again with LOCAL_RANK set. A user who
starts a run on several nodes sets NODE_RANK. torchrun and SLURM start all processes themselves.
"""

import os
from pathlib import Path

from experiments.console import is_first_of_machine

#: environment variable with the run folder, for the processes that Lightning starts
FOLDER = "SUB5M_RUN_FOLDER"
# The first of these that is set decides, as in Lightning.
RANKS = (("RANK",), ("NODE_RANK", "LOCAL_RANK"), ("SLURM_PROCID",))


def is_first() -> bool:
    """Whether this is rank 0, or the only process; only rank 0 writes."""
    for names in RANKS:
        given = [os.environ[name] for name in names if name in os.environ]
        if given:
            return all(value == "0" for value in given)
    return True


def started_outside() -> int:
    """The number of processes that torchrun or SLURM's srun has started, or 1."""
    variable = "WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_STEP_NUM_TASKS"
    return int(os.environ.get(variable, "1"))


def agree_on_a_name() -> bool:
    """Whether all processes of this run would make up the same name for it."""
    return FOLDER in os.environ or (started_outside() == 1 and "NODE_RANK" not in os.environ)


def hand_on(folder: Path) -> None:
    """Pass the run's folder to the processes that Lightning will start."""
    os.environ[FOLDER] = str(folder)


def handed_on() -> Path | None:
    """The run folder that the parent process has chosen; None in the first process."""
    return None if is_first_of_machine() or FOLDER not in os.environ else Path(os.environ[FOLDER])
