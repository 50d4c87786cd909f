"""The W&B workspace of this project's runs, as code: print it, or save it.

python experiments/dashboard.py
python experiments/dashboard.py runs/NAME
python experiments/dashboard.py --json
python experiments/dashboard.py --save --entity ENTITY --project sub5m
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.console import ArgumentParser, UserError, command

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

#: seconds until W&B counts as not reachable
TIMEOUT = 10


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the flags; UserError for a mistake."""
    parser = ArgumentParser(
        "Print the W&B workspace of this project's runs, without account or network, or save it."
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=Path,
        nargs="*",
        help="folder of a run: mark the keys that none of these runs has logged",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--json", action="store_true", help="print the specification for W&B")
    instead.add_argument(
        "--save", action="store_true", help="save it as a new view of the project on W&B"
    )
    parser.add_argument("--entity", default="", help="user or team (default: the account's)")
    parser.add_argument("--project", default="sub5m", help="project of the runs (default: sub5m)")
    flags = parser.parse_args(argv)
    if flags.runs and (flags.json or flags.save):
        raise UserError(
            f"RUN {flags.runs[0]} cannot be used with --{'json' if flags.json else 'save'}"
        )
    return flags


def logged_by(runs: Sequence[Path]) -> set[str] | None:
    """The keys that at least one of the runs has logged; None without runs."""
    from experiments.tracking.wandb_file import logged_rows

    if not runs:
        return None
    keys: set[str] = set()
    for run in runs:
        found = {key for row in logged_rows(run) for key in row}
        if not found:
            raise UserError(
                f"{run} has no W&B files: name a run that was trained with --wandb offline"
            )
        keys |= found
    return keys


def show(workspace: "Workspace", logged: set[str] | None) -> None:
    """Print sections and panels with their keys, and mark keys without data."""
    from rich.console import Console
    from rich.markup import escape
    from rich.tree import Tree

    from experiments.tracking.panels import COLUMNS, is_logged, keys_of, title_of

    def named(keys: Sequence[str]) -> str:
        lacking = [logged is not None and not is_logged(key, logged) for key in keys]
        marked = zip(map(escape, keys), lacking, strict=True)
        return ", ".join(f"[red]{key} (not logged)[/]" if bad else key for key, bad in marked)

    tree = Tree(f"[bold]{workspace.name}[/], a workspace of the project {workspace.project}")
    tree.add(f"[bold]Table of runs[/]: {named(COLUMNS)}")
    for section in workspace.sections:
        branch = tree.add(f"[bold]{section.name}[/]")
        for panel in section.panels:
            kind = type(panel).__name__
            branch.add(f"{escape(title_of(panel))} [dim]({kind})[/]: {named(keys_of(panel))}")
    Console(width=None if sys.stdout.isatty() else 120).print(tree)


def save(workspace: "Workspace") -> str:
    """Save the workspace with the account of `wandb login`, and return its address."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    if not wandb.login(prompt=False, verify=False):
        raise UserError("--save: not logged in to W&B, or W&B is offline here: run `wandb login`")
    try:
        account = wandb.Api(timeout=TIMEOUT)
        workspace.entity = workspace.entity or account.default_entity or ""
        return workspace.save().url
    except Exception as error:  # W&B, its service and the network have no common class
        raise UserError(f"--save: {error}") from None


@command
def main() -> None:
    flags = read_arguments(sys.argv[1:])
    for package in ("wandb", "wandb_workspaces"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"the dashboard needs the package {package.replace('_', '-')}: install it with "
                "pip install -r requirements.txt"
            )
    # After the flags: importing them takes seconds, and they may be missing.
    from experiments.tracking.panels import build_workspace

    workspace = build_workspace(flags.entity, flags.project)
    if flags.save:
        print(save(workspace))
    elif flags.json:
        spec = workspace._to_model().spec
        print(spec.model_dump_json(by_alias=True, exclude_none=True, indent=2))
    else:
        show(workspace, logged_by(flags.runs))


if __name__ == "__main__":
    main()
