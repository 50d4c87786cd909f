"""Train the rows of the papers' tables that have no record, and judge the claims.

python experiments/reproduce.py sam_resnet_table1 --scale mini --dry-run
python experiments/reproduce.py sam_resnet_table1 --scale mini --budget-minutes 120
python experiments/reproduce.py sam_resnet_table1 alternatives --rows se,mixup,se_443 --seeds 1
python experiments/reproduce.py all --ray auto --gpus-per-row 0.5
python experiments/reproduce.py --table

A suite is a file of experiments/suites, or another YAML file of that schema. A process of run.py
trains each row without a record, in the order of `experiments.reproduction.plan.make_plan`, and
resumes interrupted trainings. Records are written to experiments/results/claims. At the time limit,
at Ctrl-C and at SIGTERM, the current training writes a checkpoint and ends; the same command
continues it.

Exit code: 0 for success and for the time limit, 1 if a row failed, 2 for a mistake or a full disk.
"""

import argparse
import importlib.util
import math
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, get_args

from experiments.claims.suites import (
    MOST_SEEDS,
    RESULTS,
    SCALES,
    SHORTENED,
    SUITES,
    Scale,
    Suite,
    read_rows,
    read_suites,
)
from experiments.console import ArgumentParser, UserError, check_folder, command, duration, listing

if TYPE_CHECKING:
    from experiments.claims.matching import Results
    from experiments.reproduction.engine import Engine
    from experiments.reproduction.plan import Job
    from experiments.reproduction.runner import Outcome, Workplace

# Functions import torch and Lightning, which `--help` does not need.


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the flags; UserError for a mistake."""
    parser = ArgumentParser(
        "Train the missing rows of the papers' tables, and judge their claims.",
        epilog=listing("Suites", (path.stem for path in sorted(SUITES.glob("*.yaml")))),
    )
    parser.add_argument("suites", metavar="SUITE", nargs="*", help="all, or suites by name or file")
    parser.add_argument(
        "--rows", metavar="NAME,NAME", help="some rows of the suites (default: all)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each row (default: 3)")
    parser.add_argument(
        "--scale",
        choices=get_args(Scale),
        default="full",
        help="full recipes, fewer epochs (short, short_cpu) or a smoke test (mini)",
    )
    parser.add_argument(
        "--budget-minutes", type=float, default=math.inf, help="limit in minutes (default: none)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the plan, its operations and its time"
    )
    parser.add_argument(
        "--table", action="store_true", help="write CLAIMS.md and FRONTIER.md from the records"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs"), help="folder of run folders (default: runs)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="folder of records; new ones go to claims/ (default: experiments/results)",
    )
    parser.add_argument(
        "--rows-at-once",
        type=int,
        default=1,
        help="simultaneous trainings on this machine (default: 1)",
    )
    parser.add_argument(
        "--ray", metavar="auto|ADDRESS", help="train the rows on a running Ray cluster"
    )
    parser.add_argument(
        "--cpus-per-row", type=float, default=1, help="CPUs of a row, with --ray (default: 1)"
    )
    parser.add_argument(
        "--gpus-per-row",
        type=float,
        help="GPUs of a row, with --ray, such as 0.5 (default: 1 if there are GPUs)",
    )
    flags = parser.parse_args(argv)
    if not flags.suites and not flags.table:
        parser.error("name a SUITE, or --table")
    if flags.rows and not flags.suites:
        parser.error(f"--rows {flags.rows} needs a SUITE, such as sam_resnet_table1")
    for name in ("seeds", "budget_minutes", "rows_at_once", "cpus_per_row"):
        if not getattr(flags, name) > 0:  # nan is not either
            given = getattr(flags, name)
            parser.error(f"--{name.replace('_', '-')} must be above 0, got {given:g}")
    if flags.seeds > MOST_SEEDS:
        parser.error(f"--seeds must be at most {MOST_SEEDS:,}, got {flags.seeds}")
    check_folder("--output", flags.output)
    if flags.gpus_per_row is not None and not flags.gpus_per_row >= 0:
        parser.error(f"--gpus-per-row must be 0 or more, got {flags.gpus_per_row:g}")
    if flags.ray and flags.rows_at_once > 1:
        parser.error("--rows-at-once is for this machine: with --ray use --cpus-per-row")
    if flags.ray and importlib.util.find_spec("ray") is None:
        parser.error(
            "--ray needs the package ray: install it with pip install -r requirements-dev.txt"
        )
    return flags


def check_results(flags: argparse.Namespace) -> None:
    """UserError if `--results` is missing and this command does not make it."""
    if flags.results.is_dir():
        return
    check_folder("--results", flags.results)
    if flags.dry_run or not flags.suites:
        raise UserError(f"--results {flags.results} does not exist: name the folder of the records")
    print(f"There are no records yet: the folder {flags.results} is made")


def show_plan(jobs: Sequence["Job"], results: "Results", runs: Path, scale: Scale) -> None:
    """Print the missing runs in their order, with their cost."""
    from rich.table import Table

    from experiments.reporting.tables import print_table
    from experiments.reproduction.progress import share_done
    from experiments.reproduction.training_cost import Stopwatch

    stopwatch = Stopwatch(results.records)
    table = Table(
        title=f"{len(jobs)} missing runs, {SCALES[scale]}",
        caption="Claims: comparable claims without a measurement. Operations: forward and backward "
        "passes on training images; a multiply-add is two. Time: on this machine, one training "
        "after the other, estimated from a step taken now or from the named record.",
    )
    for column in ("row", "claims", "operations", "time"):
        table.add_column(column, justify="left" if column == "row" else "right", overflow="fold")
    total = 0.0
    for job in jobs:
        done = share_done(job, runs)
        name, cells = job.name, ["", "to be evaluated"]
        if not job.trained:
            seconds, record = stopwatch.seconds(job.config)
            left = seconds * (1 - done)
            total += left
            name += f"\n  time from {record}" if record else ""
            state = f"\n{done:.0%} trained" if done else ""
            cells = [f"{job.operations:.2g}", f"{duration(left)}{state}"]
        table.add_row(name, str(job.open_claims), *cells)
    table.add_section()
    operations = sum(job.operations for job in jobs)
    table.add_row("all", "", f"{operations:.2g}", duration(total))
    print_table(table)


def show_claims(suites: Sequence[Suite], scale: Scale, results: Path) -> None:
    """Print the verdicts of the records on the suites' claims."""
    from rich.markup import escape
    from rich.table import Table

    from experiments.claims.claims import claim_rows
    from experiments.claims.matching import load_results
    from experiments.reporting.tables import print_table

    table = Table(title=f"Claims, {SCALES[scale]}", show_lines=True)
    for column in ("claim", "claimed", "measured", "n", "verdict", "seeds\nneeded"):
        table.add_column(column, justify="left" if column in ("claim", "verdict") else "right")
    for row in claim_rows(load_results(results), suites):
        if row.scale in (scale, "counted"):
            verdict = f"{row.verdict} ({scale})" if row.scale in SHORTENED else row.verdict
            cells = (row.claim.text, row.claimed, row.measured, row.n, verdict, row.seeds)
            table.add_row(*(escape(cell) for cell in cells))
    print_table(table)


def start_engine(flags: argparse.Namespace, place: "Workplace", deadline: float) -> "Engine":
    """Return the engine that calls `run_row`: this machine, or a Ray cluster."""
    if flags.ray is None:
        from experiments.reproduction.engine import Here

        return Here(place, deadline, flags.rows_at_once)
    from experiments.reproduction.ray_runner import RayCluster

    return RayCluster(flags.ray, flags.cpus_per_row, flags.gpus_per_row, place, deadline)


def run(jobs: Sequence["Job"], flags: argparse.Namespace) -> list["Outcome"]:
    """Execute the plan; Ctrl-C and SIGTERM end it like the end of the time."""
    from rich.console import Console

    from experiments.reproduction.engine import execute
    from experiments.reproduction.progress import Display
    from experiments.reproduction.runner import Workplace

    place = Workplace(flags.output.resolve(), (flags.results / "claims").resolve())
    deadline = time.time() + 60 * flags.budget_minutes
    engine = start_engine(flags, place, deadline)
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which sets its own
        signal.signal(number, lambda *_: stop.set())
    display = Display(jobs, place.runs, Console())
    with display.bars:
        return execute(jobs, engine, deadline, stop, display.look, display.ended)


def summarise(outcomes: Sequence["Outcome"], scale: Scale) -> int:
    """Print the outcomes of the jobs, and return the exit code."""
    if not outcomes:
        print(f"Nothing is left to train, {SCALES[scale]}")
        return 0
    count = {x: sum(o.ending == x for o in outcomes) for x in ("finished", "failed")}
    left = len(outcomes) - count["finished"] - count["failed"]
    print(f"{count['finished']} finished, {count['failed']} failed, {left} left, {SCALES[scale]}")
    if left:
        print("The same command continues from here.")
    for outcome in outcomes:
        if outcome.ending == "failed":
            print(f"failed: {outcome.job.name}: {outcome.reason}", file=sys.stderr)
    full = [outcome for outcome in outcomes if outcome.ending == "full disk"]
    if full:
        raise UserError(
            f"{full[0].job.name}: {full[0].reason}: free some space and repeat the command"
        )
    return 1 if count["failed"] else 0


@command
def main() -> None:
    flags = read_arguments(sys.argv[1:])
    from experiments.claims.matching import load_results
    from experiments.reproduction.plan import make_plan

    code = 0
    suites = read_suites(flags.suites)
    lacking = [x.name for x in suites if flags.scale in SHORTENED and not x.defines(flags.scale)]
    if lacking:
        raise UserError(f"--scale {flags.scale}: the suite {lacking[0]} defines no such scale")
    rows = read_rows(flags.rows, suites)
    check_results(flags)
    results = load_results(flags.results)
    jobs = make_plan(suites, rows, flags.scale, flags.seeds, results, flags.output)
    if suites and flags.dry_run:
        show_plan(jobs, results, flags.output, flags.scale)
    elif suites:
        code = summarise(run(jobs, flags) if jobs else [], flags.scale)
        if flags.scale != "mini":
            show_claims(suites, flags.scale, flags.results)
    if flags.table:
        from experiments.reporting.claims_page import write_claims
        from experiments.reporting.frontier import write_frontier

        print(f"Every claim: {write_claims(flags.results)}")
        print(f"Accuracy against size and cost: {write_frontier(flags.results)}")
    sys.exit(code)


if __name__ == "__main__":
    main()
