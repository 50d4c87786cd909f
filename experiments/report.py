"""One page of everything that was trained: self-contained HTML, made from records and runs.

python experiments/report.py
python experiments/report.py runs/NAME runs/OTHER experiments/results --out report
"""

import argparse
import sys
from pathlib import Path

from experiments.claims.claims import claim_rows
from experiments.console import ArgumentParser, UserError, command, track
from experiments.records.record import write_atomically
from experiments.reporting.collect import collect
from experiments.reporting.page import render
from experiments.reporting.run_details import ImageSource, describe_run


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """The flags; a mistake in them ends the process."""
    parser = ArgumentParser("Make one self-contained HTML page of records and finished runs.")
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=Path,
        nargs="*",
        help="folder of a finished run, record file, or folder of either (default: runs and "
        "experiments/results)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report"),
        help="folder that index.html is written into (default: %(default)s)",
    )
    parser.add_argument("--root", help="folder of CIFAR-10 (default: that of each run)")
    flags = parser.parse_args(argv)
    for folder in (flags.out, *flags.out.parents):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out {flags.out} must be a folder: {folder} is a file")
    return flags


@command
def main() -> None:
    flags = read_arguments(sys.argv[1:])
    found = collect(flags.runs)
    entries = found.entries
    images = ImageSource(flags.root)
    with_folders = [entry for entry in entries if entry.run]
    steps = track(enumerate(with_folders, 1), "Describing runs", len(with_folders))
    claims = claim_rows(found.records, found.evaluations) if found.records else []
    details = [describe_run(entry, f"run-{i}", images) for i, entry in steps]
    page = render(entries, details, claims, unread=len(found.unread))
    flags.out.mkdir(parents=True, exist_ok=True)
    path = flags.out / "index.html"
    write_atomically(path, page)
    print(
        f"Written: {path} ({len(entries)} records, {len(details)} runs, {len(page) / 1e6:.1f} MB)"
    )


if __name__ == "__main__":
    main()
