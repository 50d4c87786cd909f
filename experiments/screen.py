"""Choose among a suite's rows by short trainings, and longer trainings of the better rows.

python experiments/screen.py champion
python experiments/screen.py champion --rows base,sam,asam --epochs 4 --rungs 2
python experiments/screen.py champion --seeds 3 --budget-minutes 60

Each row is trained at mini scale for `--epochs` with `--seeds`. Rows in the better half so far are
trained for twice as long with one more seed, and so on (successive halving, by Optuna). Validation
decides, and the test set is not read. Records and a page, SUITE.md, are written to
experiments/results/screening; with `--rows` the page is SUITE-ROW-ROW.md. At the time limit the
current training writes a checkpoint and ends; the same command continues it and repeats nothing.

Exit code: 0 for success and for the time limit, 2 for a mistake or a failed training.
"""

import argparse
import importlib.util
import math
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

from experiments.claims.suites import MOST_SEEDS, RESULTS, Suite, read_rows, read_suites
from experiments.console import ArgumentParser, UserError, check_folder, command

#: more rounds would train for more than a million epochs
MOST_RUNGS = 20


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the flags; UserError for a mistake."""
    parser = ArgumentParser("Choose among a suite's rows by short trainings, on validation.")
    parser.add_argument("suite", metavar="SUITE", help="a suite of experiments/suites, or a file")
    parser.add_argument(
        "--rows",
        metavar="NAME,NAME",
        help="some of its rows; the others are compared with the first (default: all)",
    )
    parser.add_argument(
        "--epochs", type=int, default=2, help="epochs of the first trainings (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="seeds of the first trainings (default: %(default)s)"
    )
    parser.add_argument(
        "--rungs", type=int, default=3, help="rounds of trainings (default: %(default)s)"
    )
    parser.add_argument(
        "--budget-minutes", type=float, default=math.inf, help="limit in minutes (default: none)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs"), help="folder of run folders (default: runs)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS / "screening",
        help="folder of records and page (default: experiments/results/screening)",
    )
    flags = parser.parse_args(argv)
    for name in ("epochs", "seeds", "rungs", "budget_minutes"):
        if not getattr(flags, name) > 0:  # nan is not either
            given = getattr(flags, name)
            parser.error(f"--{name.replace('_', '-')} must be above 0, got {given:g}")
    for name, most in (("seeds", MOST_SEEDS), ("rungs", MOST_RUNGS)):
        if getattr(flags, name) > most:
            parser.error(f"--{name} must be at most {most:,}, got {getattr(flags, name)}")
    check_folder("--output", flags.output)
    check_folder("--results", flags.results)
    if importlib.util.find_spec("optuna") is None:
        parser.error(
            "the package optuna is missing: install it with pip install -r requirements-dev.txt"
        )
    return flags


def read_suite(flags: argparse.Namespace) -> Suite:
    """Read the suite, with the rows of `--rows` in that order."""
    if flags.suite == "all":
        raise UserError(
            "all is not a suite: rows of several suites cannot be compared, so name one"
        )
    (suite,) = read_suites([flags.suite])
    names = read_rows(flags.rows, [suite]) or list(suite.rows)
    return replace(suite, rows={name: suite.rows[name] for name in names})


def command_of(flags: argparse.Namespace) -> str:
    """The command that repeats this screening, without folders and time limits."""
    rows = f" --rows {flags.rows}" if flags.rows else ""
    sizes = f"--epochs {flags.epochs} --seeds {flags.seeds} --rungs {flags.rungs}"
    return f"python experiments/screen.py {flags.suite}{rows} {sizes}"


@command
def main() -> None:
    flags = read_arguments(sys.argv[1:])
    # After the flags: these import Optuna, which may be missing, and torch, which takes seconds.
    from experiments.claims.matching import load_results
    from experiments.records.record import write_atomically
    from experiments.reporting.screening_page import render
    from experiments.reproduction.halving import Worker, make_rungs, row_of, screen
    from experiments.reproduction.runner import Workplace

    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    place = Workplace(flags.output.resolve(), flags.results.resolve())
    deadline = time.time() + 60 * flags.budget_minutes
    rungs = make_rungs(flags.rungs, flags.epochs, flags.seeds)
    suite = read_suite(flags)
    for name in suite.rows:
        row_of(suite, name, rungs[0])  # rejects a row now, not hours later
    worker = Worker(suite, place, deadline, stop.is_set)
    ended = screen(worker, rungs, partial(print, flush=True))
    name = "-".join([suite.name, *(suite.rows if flags.rows else [])])
    page = flags.results / f"{name}.md"
    results = load_results(flags.results)
    flags.results.mkdir(parents=True, exist_ok=True)
    write_atomically(page, render(suite, rungs, results, command_of(flags)))
    print(f"Ranking: {page}")
    if not ended:
        print("Stopped: the same command continues.")


if __name__ == "__main__":
    main()
