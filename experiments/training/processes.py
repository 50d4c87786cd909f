"""Which of a run's processes this one is: read from the environment, before torch is imported.

Lightning starts one process for each device by running the command again with LOCAL_RANK set (and a
user who starts it on several nodes sets NODE_RANK); torchrun and SLURM start all of them.
"""

import os
from pathlib import Path

from experiments.console import is_first_of_machine

#: where a process that Lightning starts finds the run folder that the first one has chosen
FOLDER = "SUB5M_RUN_FOLDER"
# Of these the first that is set says which process of the run this is, as in Lightning.
RANKS = (("RANK",), ("NODE_RANK", "LOCAL_RANK"), ("SLURM_PROCID",))


def _is_zero(variables: tuple[tuple[str, ...], ...]) -> bool:
    for names in variables:
        given = [os.environ[name] for name in names if name in os.environ]
        if given:
            return all(value == "0" for value in given)
    return True


def is_first() -> bool:
    """Whether this is rank 0, which alone writes; also where it is the only process."""
    return _is_zero(RANKS)


def started_outside() -> int:
    """How many processes torchrun or SLURM's srun has started as this run; 1 where neither has."""
    variable = "WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_STEP_NUM_TASKS"
    return int(os.environ.get(variable, "1"))


def agree_on_a_name() -> bool:
    """Whether all processes of this run would make up the same name for it."""
    return FOLDER in os.environ or (started_outside() == 1 and "NODE_RANK" not in os.environ)


def hand_on(folder: Path) -> None:
    """Tell the processes that Lightning is going to start which folder is the run's."""
    os.environ[FOLDER] = str(folder)


def handed_on() -> Path | None:
    """The run folder that the process which started this one has chosen; None where it is first."""
    return None if is_first_of_machine() or FOLDER not in os.environ else Path(os.environ[FOLDER])
