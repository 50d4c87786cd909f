"""`reproduce.py` that trains with the `run.py` in the same folder."""

from functools import partial
from pathlib import Path

import experiments.reproduce
from experiments.reproduction import runner

runner.Workplace = partial(runner.Workplace, scripts=Path(__file__).parent)  # type: ignore
experiments.reproduce.main()
