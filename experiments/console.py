"""Commands: their argument parser, and one line instead of a traceback for a user's mistake."""

import argparse
import difflib
import errno
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import NoReturn

#: errors of the operating system for a full disk or an exceeded quota
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
#: process numbers on one machine, as torchrun, Lightning and SLURM set them
LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")
#: seconds that a process waits for the first one of its machine to end
PATIENCE = 10.0


class UserError(Exception):
    """A user's mistake: one line that names the flag or file, the value and a correct one."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser without abbreviated flags, whose errors are UserErrors."""

    def __init__(self, description: str | None = None, add_help: bool = True) -> None:
        super().__init__(description=description, add_help=add_help, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def near(name: str, names: list[str]) -> str:
    """A hint at the known names that resemble `name`, or an empty string."""
    matches = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a command's `main`: a mistake prints one line on stderr and ends with exit code 2.

    Mistakes are UserError, OSError (files that are missing, full disks) and Lightning's
    MisconfigurationException, which the packages below `experiments` raise.
    """

    @wraps(main)
    def wrapped() -> None:
        try:
            main()
        except Exception as error:
            if not _is_mistake(error):
                raise
            full = isinstance(error, OSError) and error.errno in FULL_DISK
            line = f"the disk is full: {error}" if full else str(error)
            _end(line, getattr(error, "exit_code", 2))

    return wrapped


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
    """Print the line in the first process of a machine; all processes meet the same mistake."""
    if is_first_of_machine():
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    else:
        # Lightning would kill the first process if a process that it started ended before it.
        parent, end = os.getppid(), time.monotonic() + PATIENCE
        while os.getppid() == parent and time.monotonic() < end:
            time.sleep(0.05)
    sys.exit(exit_code)
