"""Commands: their argument parser, their progress, and one line for a user's mistake."""

import argparse
import difflib
import errno
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

#: errors of the operating system for a full disk or an exceeded quota
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
#: process numbers on one machine, as torchrun, Lightning and SLURM set them
LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")
#: seconds that a process waits for the first one of its machine to end
PATIENCE = 10.0
#: seconds between two lines of `track` if stderr is not a terminal
LINE_EVERY = 30.0


class UserError(Exception):
    """A user's mistake: one line with the flag or file, the value and a correct one."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser that raises UserError and allows no abbreviated flags."""

    def __init__(self, description: str | None = None, **settings: Any) -> None:
        settings["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def listing(title: str, names: Iterable[str]) -> str:
    """Names for the end of a help text, in lines of the terminal's width."""
    width = min(100, shutil.get_terminal_size().columns)
    return textwrap.fill(f"{title}: {', '.join(names)}", width, break_on_hyphens=False)


def near(name: str, names: list[str]) -> str:
    """A hint at the known names that resemble `name`, or an empty string."""
    matches = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""


def check_folder(flag: str, path: Path) -> None:
    """UserError if no folder can be made at `path`, because it or a parent is a file."""
    for parent in (path, *path.parents):
        if os.path.lexists(parent) and not parent.is_dir():  # a broken link does not exist
            raise UserError(f"{flag} {path} must be a folder: {parent} is not one")


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a command's `main`: a mistake prints one line and ends with exit code 2.

    Mistakes are UserError, OSError (files that are missing, full disks) and Lightning's
    MisconfigurationException, which the packages below `experiments` raise. Ctrl-C ends with 130.
    """

    @wraps(main)
    def wrapped() -> None:
        replace_unknown_characters()
        try:
            main()
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:  # mistakes have several classes: see _is_mistake
            if not _is_mistake(error):
                raise
            full = isinstance(error, OSError) and error.errno in FULL_DISK
            line = f"the disk is full: {error}" if full else str(error)
            _end(line, getattr(error, "exit_code", 2))

    return wrapped


def replace_unknown_characters() -> None:
    """Print a replacement for characters that the output's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def printable(text: str) -> str:
    """The text with control characters, such as escapes, in Python's notation."""
    return "".join(
        x if x.isprintable() else x.encode("unicode_escape", "replace").decode() for x in text
    )


def duration(seconds: float) -> str:
    """Seconds in words, such as 45 s, 12 min, 2 h 15 min or 3 days 4 h."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    hours = round(minutes / 60)
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    return f"{hours // 24} days {hours % 24} h" if hours % 24 else f"{hours // 24} days"


def track(items: Iterable[T], name: str, total: int) -> Iterator[T]:
    """Iterate and show the progress on stderr: a bar on a terminal, else lines.

    Without a terminal, work of less than `LINE_EVERY` seconds prints nothing.
    """
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True)
    if console.is_interactive:
        yield from bar(items, name, total=total, console=console, transient=True)
        return
    began = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= LINE_EVERY:
            last, left = now, (total - done) * (now - began) / done
            line = f"{name}: {done:,} of {total:,}, {duration(left)} left"
            print(line, file=sys.stderr, flush=True)
        yield item


def is_first_of_machine() -> bool:
    """Whether this is the first of a run's processes on its machine."""
    return next((os.environ[x] == "0" for x in LOCAL_RANKS if x in os.environ), True)


def _is_mistake(error: Exception) -> bool:
    if isinstance(error, UserError):
        return True
    if isinstance(error, OSError):
        return error.errno is not None  # of the operating system
    # Not imported here, which takes 10 s: if nothing has imported it, nothing has raised it.
    lightning = sys.modules.get("lightning.pytorch.utilities.exceptions")
    return lightning is not None and isinstance(error, lightning.MisconfigurationException)


def _end(message: str, exit_code: int) -> NoReturn:
    """Print the line once on a machine; all its processes meet the same mistake."""
    if is_first_of_machine():
        print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    else:
        # Lightning would kill the first process if a process that it started ended before it.
        parent, end = os.getppid(), time.monotonic() + PATIENCE
        while os.getppid() == parent and time.monotonic() < end:
            time.sleep(0.05)
    sys.exit(exit_code)
