import os

import pytest
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from experiments.training.trainer import Trainer, WholeFiles, resolve_precision


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is a GPU, which computes in bf16 or emulates it; or that there is none."""

    def gpu(available=True, bf16=True):
        def is_bf16_supported(including_emulation=True):
            return including_emulation or bf16

        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)

    return gpu


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_auto_is_the_fastest_precision_that_a_gpu_computes_in(gpu, accelerator):
    gpu(bf16=True)
    assert resolve_precision("auto", accelerator) == "bf16-mixed"
    gpu(bf16=False)
    assert resolve_precision("auto", accelerator) == "16-mixed"


def test_auto_is_32_bits_on_a_cpu(gpu):
    gpu()
    assert resolve_precision("auto", "cpu") == "32-true"
    gpu(available=False)
    assert resolve_precision("auto", "auto") == "32-true"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "64-true"])
def test_a_precision_that_is_named_is_taken(gpu, precision):
    gpu()
    assert resolve_precision(precision, "auto") == precision
    gpu(available=False)
    assert resolve_precision(precision, "cpu") == precision


def test_the_trainer_resolves_it():
    assert Trainer(accelerator="cpu", logger=False).precision == "32-true"
    assert Trainer("bf16-mixed", "cpu", logger=False).precision == "bf16-mixed"


def test_a_write_that_is_cut_off_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"epoch": 1}, path)

    def cut_off(self, checkpoint, path, storage_options=None):
        with open(path, "wb") as file:
            file.write(b"half a check")
        raise OSError("No space left on device")

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", cut_off)
    with pytest.raises(OSError, match="No space"):
        WholeFiles().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}


def test_only_the_whole_checkpoint_is_left(tmp_path):
    for epoch in (1, 2):
        WholeFiles().save_checkpoint({"epoch": epoch}, tmp_path / "last.ckpt")
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"epoch": 2}
