"""The folder of one run: its making, and its lock while a process works on the run."""

import fcntl
from itertools import count
from pathlib import Path
from typing import TextIO

#: in the run's folder; the system frees the lock of a process that is killed
LOCK = ".lock"


def make_folder(folder: Path, made_up: bool) -> Path:
    """Make a run's folder; one whose name is made up and taken gets a number behind it.

    OSError where it cannot be made.
    """
    name, numbers = folder.name, count(2)
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=not made_up)
            return folder
        except FileExistsError:
            if not made_up or not folder.exists():
                raise
            folder = folder.with_name(f"{name}-{next(numbers)}")


def lock_folder(folder: Path) -> TextIO | None:
    """A file that holds a run's lock until it is closed; None where another process holds it.

    Processes that this one starts do not inherit it.
    """
    file = (folder / LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def is_locked(folder: Path) -> bool:
    """Whether a process works on a run."""
    try:
        with (folder / LOCK).open() as file:
            # Shared, so that of two processes that ask at once neither is told of the other.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False
