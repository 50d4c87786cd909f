"""The suites and rows that a command line names."""

from collections.abc import Sequence
from pathlib import Path

from experiments.claims.suites import SUITES, Suite, load_suite, load_suites
from experiments.training.launch import fail, near


def read_suites(names: Sequence[str]) -> list[Suite]:
    """The suites of these names or files; an unknown one ends the process."""
    known = [path.stem for path in sorted(SUITES.glob("*.yaml"))]
    if "all" in names:
        return list(load_suites().values())
    suites = []
    for name in dict.fromkeys(names):
        is_file = name.endswith((".yaml", ".yml"))
        if not is_file and name not in known:
            fail(f"{name} is no suite{near(name, known)}: name some of {', '.join(known)}, or all")
        suites.append(load_suite(Path(name) if is_file else SUITES / f"{name}.yaml"))
    return suites


def read_rows(names: str | None, suites: Sequence[Suite]) -> list[str]:
    """The rows that are asked for; an unknown one ends the process."""
    rows = names.split(",") if names is not None else []
    known = list(dict.fromkeys(row for suite in suites for row in suite.rows))
    for row in rows:
        if row not in known:
            fail(f"--rows {row} is unknown{near(row, known)}: the rows are {', '.join(known)}")
    return rows
