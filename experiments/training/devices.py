"""Devices: checking several, and the effective batch size."""

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from experiments.console import UserError
from experiments.training.processes import started_outside
from experiments.training.trainer import Trainer


def check_devices(trainer: Trainer, batch_size: int, sync_batchnorm: bool) -> None:
    """Raise UserError or ValueError if a run cannot use a Trainer's devices."""
    processes, strategy = trainer.world_size, trainer.strategy
    if processes == 1:
        if started_outside() > 1:
            raise UserError(
                f"{started_outside()} processes were started, but --trainer.devices x "
                "--trainer.num_nodes is 1"
            )
        return
    # Other strategies split the weights, which the callbacks average as a whole, or train in
    # processes whose counters this one never sees.
    launcher = strategy.launcher
    if type(strategy) is not DDPStrategy or not isinstance(launcher, _SubprocessScriptLauncher):
        raise UserError("--trainer.strategy must be ddp on several devices")
    if batch_size % processes:
        raise UserError(
            f"--data.batch_size must be a multiple of the number of devices, {processes}, "
            f"got {batch_size}"
        )
    if sync_batchnorm and strategy.root_device.type == "cpu":
        raise UserError("--trainer.sync_batchnorm needs GPUs, got CPUs")
    assert strategy.cluster_environment is not None
    strategy.cluster_environment.validate_settings(trainer.num_devices, trainer.num_nodes)


def images_per_step(trainer: Trainer, batch_size: int) -> int:
    """The effective batch size: the images of one optimizer step."""
    return batch_size * trainer.accumulate_grad_batches


def step_in_words(trainer: Trainer, batch_size: int, lr: float) -> str:
    """The effective batch size, its factors, and the learning rate."""
    images, devices = images_per_step(trainer, batch_size), trainer.world_size
    parts = [f"{devices} devices x"] if devices > 1 else []
    if images > batch_size:
        parts.append(f"{trainer.accumulate_grad_batches} batches x")
    made_of = f" ({' '.join(parts)} {batch_size // devices})" if parts else ""
    return f"An optimizer step sees {images} images{made_of}; peak learning rate {lr:g}"


def end_processes() -> None:
    """Leave the process group, if there is one: from now on each process works alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_one_device(trainer: Trainer) -> Trainer:
    """A Trainer for this process's device alone; the given one if it has one device."""
    if trainer.world_size == 1:
        return trainer
    device = trainer.strategy.root_device
    return Trainer(
        precision=trainer.precision,  # type: ignore[arg-type]
        accelerator=device.type,  # type: ignore[arg-type]
        devices=1 if device.index is None else [device.index],
        max_epochs=trainer.max_epochs,
        max_steps=trainer.max_steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
