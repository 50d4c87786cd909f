"""Messages of Lightning and torch that are not about this run."""

import logging
import re
import warnings

#: warnings about decisions of this project
WARNINGS = (
    "Checkpoint directory .* exists and is not empty",
    "The number of training batches .* is smaller than the logging interval",
    "Total length of `EvalLoader` across ranks is zero",  # val_fraction 0
    "You're resuming from a checkpoint that ended before the epoch",  # the data module resumes
    "The '.*_dataloader' does not have many workers",  # our loaders need no workers
    "It is recommended to use `self.log",  # with sync_dist=True: metrics are already reduced
    "You have overridden `on_before_batch_transfer`",  # ImageClassifier checks batches there
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # a call in Lightning
    "TensorFloat32 tensor cores .* available but not enabled",  # `machine.set_tf32` decides
)
#: information about the machine, other products, and events that the display reports
INFORMATION = (
    "💡 Tip",
    "(GPU|TPU) available",
    "You are using a CUDA device .* that has Tensor Cores",
    "LOCAL_RANK: ",
    "Using .* Automatic Mixed Precision",
    "Loading `train_dataloader` to estimate",
    "`Trainer.fit` stopped",
    "Restoring states from the checkpoint path",  # "Restored all states" follows
    "\\s*Detected KeyboardInterrupt",
)
LOGGERS = (
    "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
)


def quiet() -> None:
    """Hide these warnings and this information; all others are still printed."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_is_about_the_run)
    # The seed, which the record has. It would come before the one line about a wrong flag.
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)


def _is_about_the_run(record: logging.LogRecord) -> bool:
    known = re.match("|".join(INFORMATION), record.getMessage())
    return record.levelno > logging.INFO or known is None
