"""The folder of one run, and its lock while a process works on the run."""

import fcntl
import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TextIO

#: a file in the run's folder; the system releases the lock of a killed process
LOCK = ".lock"
#: checkpoints to resume from: the newest, and the one before it in case the newest is damaged
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


def keep_previous(path: Path) -> None:
    """Keep the newest checkpoint as previous.ckpt before another replaces it.

    Some file systems have no hard links. Then there is no previous checkpoint.
    """
    previous = path.with_name(PREVIOUS)
    with suppress(OSError):
        previous.unlink(missing_ok=True)
        os.link(path, previous)


def restore_previous(folder: Path) -> None:
    """Replace a damaged last.ckpt with previous.ckpt, which keeps its name too.

    Otherwise the next checkpoint would keep the damaged file as previous.ckpt.
    """
    partial = folder / f"{LAST}.partial"
    os.link(folder / PREVIOUS, partial)
    partial.replace(folder / LAST)


def make_folder(folder: Path, made_up: bool) -> Path:
    """Make a run's folder; a made-up name that is taken gets a number at its end.

    OSError if the folder cannot be made.
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
    """A file that holds a run's lock while open; None if another process holds it.

    Processes that this one starts do not inherit the lock.
    """
    file = (folder / LOCK).open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def is_locked(folder: Path) -> bool:
    """Whether a process works on a run."""
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            # Shared, so that two processes that ask at the same time do not block each other.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False
