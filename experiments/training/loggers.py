"""The loggers of a run: always a CSV file, and W&B if it is asked for."""

import csv
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_warn

from experiments.console import UserError
from experiments.records.record import write_atomically
from experiments.tracking.wandb_keys import CLAIMS
from experiments.training.launch import agents_run_id
from experiments.training.processes import is_first

WandbMode = Literal["offline", "online", "disabled"]

#: W&B's limits of a wait, in seconds, unless the user's environment has others
LIMITS = {
    "WANDB_INIT_TIMEOUT": "4",
    "WANDB_FINISH_TIMEOUT": "60",
    "WANDB_FINISH_TIMEOUT_RAISES": "true",
    # Reports about W&B's own errors, which would wait for the same network.
    "WANDB_ERROR_REPORTING": "false",
}


def csv_logger(folder: Path, keep_steps: int = 0) -> CSVLogger:
    """A logger to `folder/metrics.csv` that keeps the rows before step `keep_steps`.

    A resumed run logs the other rows again. Only a run's first process touches files.
    """
    logger = CSVLogger(folder, name="", version="")
    if is_first():
        logger._experiment = MetricsWriter(logger.log_dir, keep_steps)
    return logger


class MetricsWriter(ExperimentWriter):
    """Lightning's writer of metrics.csv, which loses no row if it is killed.

    Lightning deletes the file of an earlier launch. It also empties the file to add a column, for
    example at the first validation.
    """

    def __init__(self, log_dir: str, keep_steps: int) -> None:
        self.keep_steps = keep_steps
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if not path.exists():
            return
        # A full disk may have cut off the last line; its step is repeated.
        lines = [x for x in path.read_text("utf-8").splitlines(keepends=True) if x.endswith("\n")]
        rows = [row for row in csv.DictReader(lines) if int(row["step"]) < self.keep_steps]
        self.metrics_keys = sorted({name for row in rows for name, value in row.items() if value})
        if rows:
            self._write(rows)
        else:
            path.unlink()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            self._write(list(csv.DictReader(file)))

    def _write(self, rows: list[dict[str, str]]) -> None:
        text = StringIO(newline="")
        writer = csv.DictWriter(text, self.metrics_keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(Path(self.metrics_file_path), text.getvalue().encode())


class ClaimLogger(WandbLogger):
    """A W&B logger that repeats a claim at every validation accuracy.

    W&B's line plots have no reference lines: a constant curve is one.
    """

    def __init__(self, claim: Mapping[str, float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Lightning always passes this argument, and W&B warns because it has removed it.
        self._wandb_init.pop("anonymous", None)
        self.claim = claim

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({**metrics, **self.claim} if "val/acc" in metrics else metrics, step)

    def send(self, make_row: Callable[[], Mapping[str, Any]], step: int) -> None:
        """Log a row; if the server fails, make it again for an offline run.

        Tables need an answer of the server, and images belong to the run that they were made for.
        """
        import wandb

        try:
            self.log_metrics(make_row(), step)
        except wandb.Error as error:
            self.finish()
            self.continue_offline(error)
            self.log_metrics(make_row(), step)

    def continue_offline(self, error: Exception) -> None:
        """Log to an offline run with the same id, and print the command to upload it."""
        import wandb

        wandb.teardown()  # a run that failed to start still owns its id
        self._experiment = None
        self._wandb_init |= {"mode": "offline", "settings": wandb.Settings(silent=True)}
        reason = str(error).splitlines()[0].rstrip(".")
        self.print_upload(f"--wandb online: {reason}. The run continues offline")

    def finish(self, exit_code: int = 0) -> None:
        """End the W&B run; if the upload is slow, print the command that repeats it."""
        try:
            self.experiment.finish(exit_code)
        except TimeoutError:
            self.print_upload("W&B has not received the whole run")

    def print_upload(self, reason: str) -> None:
        """Print a warning and the command that uploads the run later."""
        command = shlex.join(
            ["wandb", "sync", "--include-online", self.experiment.settings.sync_dir]
        )
        print(f"warning: {reason}. Upload it later with: {command}", file=sys.stderr, flush=True)


def wandb_logger(folder: Path, mode: WandbMode, config: dict[str, Any]) -> ClaimLogger | None:
    """A W&B logger that continues an earlier launch; None if W&B is disabled.

    Of several processes only the first one logs. `config` contains every flag of the run. The
    folder keeps the run's id in wandb_id.txt; a sweep's agent gives its own id.

    Offline needs no account and no network, and without the package it logs nothing. If `online`
    fails, for example without a network or with a wrong key, the run is logged offline. UserError
    if `online` lacks the package or a key.
    """
    if mode == "disabled" or not is_first():
        return None
    if importlib.util.find_spec("wandb") is None:
        if mode == "online":
            raise UserError("--wandb online needs the package wandb: install it")
        rank_zero_warn("wandb is not installed: nothing goes to W&B.")
        return None
    import wandb

    for name, limit in LIMITS.items():
        os.environ.setdefault(name, limit)
    identity = folder / "wandb_id.txt"
    agents_id = agents_run_id()
    if agents_id or not identity.exists():
        identity.write_text(agents_id or uuid4().hex[:8], "utf-8")
    logger = ClaimLogger(
        CLAIMS.get(config["arch"], {}),
        project="sub5m",
        name=folder.name,
        # W&B reads the agent's id from the environment and warns about any other source.
        id=None if agents_id else identity.read_text("utf-8"),
        save_dir=folder,
        mode=mode,
        resume="allow",
        # "quiet" also skips a question to the server about the user, which may wait 10 seconds.
        settings=wandb.Settings(quiet=True, silent=mode == "offline"),
    )
    try:
        logger.log_hyperparams(config)
    except wandb.errors.UsageError as error:
        raise UserError(
            f"--wandb online: {str(error).rstrip('.')}. Log in with `wandb login`, or use --wandb "
            "offline"
        ) from error
    except wandb.Error as error:
        logger.continue_offline(error)
        logger.log_hyperparams(config)
    return logger
