"""The curves of a run, from its metrics.csv."""

import csv
from pathlib import Path

Points = list[tuple[int, float]]  # (optimizer step, value)


def read_metrics(path: Path) -> dict[str, Points]:
    """Every column with values of a run's metrics.csv; ValueError if there is none."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns: dict[str, Points] = {}
    for row in rows:
        for name, value in row.items():
            if value and name not in ("step", "epoch"):
                columns.setdefault(name, []).append((int(row["step"]), float(value)))
    if not columns:
        raise ValueError(f"there are no metrics in {path}")
    return columns
