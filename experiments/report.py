"""Make one self-contained HTML page from records and finished runs.

python experiments/report.py
python experiments/report.py runs/NAME runs/OTHER experiments/results --output report
"""

import argparse
import sys
from pathlib import Path

from experiments.console import ArgumentParser, UserError, check_folder, command, track


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """The flags; UserError for a mistake."""
    parser = ArgumentParser("Make one self-contained HTML page from records and finished runs.")
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=Path,
        nargs="*",
        help="runs, records or folders of them (default: runs and experiments/results)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("report"),
        help="folder for index.html (default: report)",
    )
    parser.add_argument("--root", help="folder of the data set (default: each run's)")
    flags = parser.parse_args(argv)
    check_folder("--output", flags.output)
    return flags


def make_page(flags: argparse.Namespace) -> None:
    """Collect runs and records, and write the page."""
    for path in flags.runs:
        if not path.exists():
            raise UserError(f"{path} does not exist: name a run, a record or a folder")
    from experiments.reporting.collect import collect

    found = collect(flags.runs)
    # Settings and verdicts need torch and Lightning, whose import takes seconds.
    from experiments.claims.claims import claim_rows
    from experiments.claims.matching import Results
    from experiments.claims.suites import load_suites
    from experiments.records.record import write_atomically
    from experiments.reporting.configurations import configurations
    from experiments.reporting.page import render

    rows = configurations(found.entries)
    results = Results(tuple(found.records), tuple(found.evaluations))
    claims = claim_rows(results, load_suites().values()) if found.records else []
    with_folders = [entry for row in rows for entry in row.entries if entry.run]
    details = []
    if with_folders:
        from experiments.reporting.run_details import ImageSource, describe_run

        images = ImageSource(flags.root)
        steps = track(enumerate(with_folders, 1), "Describing runs", len(with_folders))
        details = [describe_run(entry, f"run-{i}", images) for i, entry in steps]
    page = render(rows, details, claims, unread=len(found.unread))
    flags.output.mkdir(parents=True, exist_ok=True)
    path = flags.output / "index.html"
    write_atomically(path, page)
    runs = f"{len(found.entries)} records, {len(details)} runs"
    print(f"Written: {path} ({runs}, {len(page) / 1e6:.1f} MB)")


@command
def main() -> None:
    make_page(read_arguments(sys.argv[1:]))


if __name__ == "__main__":
    main()
