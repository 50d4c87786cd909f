"""`reproduce.py` that trains by the `run.py` beside it."""

from functools import partial
from pathlib import Path

import experiments.reproduce
from experiments.reproduction import runner

runner.Workplace = partial(runner.Workplace, scripts=Path(__file__).parent)  # type: ignore
experiments.reproduce.main()
