"""Flags that are fine by themselves and may not stand together, or not at all."""

from collections.abc import Collection

from jsonargparse import Namespace

from experiments.training.length import steps_of_epochs
from experiments.training.trainer import resolve_precision
from lightning_modules.optimizers import refuse_fused

# What of the Trainer's is decided elsewhere, and by what.
REFUSED = {
    "limit_predict_batches": "every image is evaluated",
    "logger": "curves go to metrics.csv, and to Weights & Biases as --wandb says",
    "default_root_dir": "--output and --name say where the run lies",
}


def refuse_combinations(config: Namespace, given: Collection[str]) -> None:
    """ValueError, or MisconfigurationException, in one line that names the flags.

    `given` are the flags of the command line, above which nothing that only a preset says may
    silently stand.
    """
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"--seed: seed must be in [0, 2**32), got {config.seed}")
    policy, weight = config.data.policy, config.model.jsd_weight
    if policy == "augmix" and weight == 0:
        raise ValueError(
            "--data.policy augmix needs its loss: set --model.jsd_weight, to 12 in its paper"
        )
    if policy != "augmix" and weight > 0:
        raise ValueError(f"--model.jsd_weight {weight} needs --data.policy augmix, got {policy}")
    trainer = config.trainer
    for name, reason in REFUSED.items():
        if trainer[name] is not None:
            raise ValueError(f"--trainer.{name} is refused: {reason}")
    if config.model.fused:
        precision = resolve_precision(trainer.precision, trainer.accelerator)
        refuse_fused(precision, trainer.gradient_clip_val)
    asked = "--trainer.max_epochs" in given and "--trainer.max_steps" not in given
    if asked and 0 < trainer.max_steps < steps_of_epochs(config.as_dict()):
        raise ValueError(
            f"--trainer.max_epochs {trainer.max_epochs} would not be reached: --trainer.max_steps "
            f"{trainer.max_steps} ends training before; give both, -1 for no limit"
        )
    if config.data.val_fraction == 0 and not config.test:
        raise ValueError("--test false leaves nothing to evaluate where --data.val_fraction is 0")
