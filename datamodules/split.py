"""Which training images are held out for validation."""

import torch
from torch import Tensor

from datamodules.tensor_loader import derive_seed


def stratified_split(labels: Tensor, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted indices (train, validation) that take the same fraction of every class."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "split"))
    train, val = [], []
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        held_out = round(len(members) * val_fraction)
        val.append(members[:held_out])
        train.append(members[held_out:])
    return torch.cat(train).sort().values, torch.cat(val).sort().values
