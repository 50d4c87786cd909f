import errno
import os
import shutil
from concurrent.futures import wait
from pathlib import Path
from threading import Event, Thread

import pytest
import torch

from experiments.console import UserError
from experiments.records.integrity import check_archive
from experiments.training import machine
from experiments.training.machine import (
    resolve_channels_last,
    resolve_compile,
    resolve_precision,
)
from experiments.training.trainer import BackgroundFiles, Trainer


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is a GPU with real or emulated bf16, or no GPU."""

    def gpu(available=True, bf16=True, cpu=None):
        def is_bf16_supported(including_emulation=True):
            return including_emulation or bf16

        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {cpu: True})
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)

    return gpu


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_auto_is_the_fastest_precision_of_a_gpu(gpu, accelerator):
    gpu(bf16=True)
    assert resolve_precision("auto", accelerator) == "bf16-mixed"
    gpu(bf16=False)
    assert resolve_precision("auto", accelerator) == "16-mixed"


@pytest.mark.parametrize(
    ("cpu", "expected", "last"),
    [("avx2", "32-true", False), ("avx512_bf16", "bf16-mixed", True),
     ("amx_bf16", "bf16-mixed", True)],
)  # fmt: skip
def test_auto_on_a_cpu_is_bf16_in_channels_last_if_it_has_instructions_for_bf16(
    gpu, cpu, expected, last
):
    for available, accelerator in ((True, "cpu"), (False, "cpu"), (False, "auto")):
        gpu(available, cpu=cpu)
        assert resolve_precision("auto", accelerator) == expected
        assert resolve_channels_last("auto", accelerator) is last


def test_auto_is_channels_last_on_a_gpu(gpu):
    gpu()
    assert resolve_channels_last("auto", "auto") is True
    assert resolve_channels_last("auto", "cpu") is False


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_named_format_is_used(gpu, channels_last):
    gpu()
    assert resolve_channels_last(channels_last, "auto") is channels_last


def test_auto_compiles_long_trainings_on_a_gpu(gpu, monkeypatch):
    monkeypatch.setattr(machine, "has_triton", lambda: True)
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    gpu()
    assert resolve_compile("auto", "auto", 70_000) is True
    assert resolve_compile("auto", "auto", 290) is False
    assert resolve_compile("auto", "cpu", 70_000) is False
    assert resolve_compile(True, "auto", 290) is True
    monkeypatch.setattr(machine, "has_triton", lambda: False)
    assert resolve_compile("auto", "auto", 70_000) is False
    gpu(available=False)
    assert resolve_compile("auto", "auto", 70_000) is False


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "64-true"])
def test_a_named_precision_is_used(gpu, precision):
    gpu()
    assert resolve_precision(precision, "auto") == precision
    gpu(available=False)
    assert resolve_precision(precision, "cpu") == precision


def test_the_trainer_resolves_it(gpu):
    gpu(available=False)
    assert Trainer(accelerator="cpu", logger=False).precision == "32-true"
    assert Trainer("bf16-mixed", "cpu", logger=False).precision == "bf16-mixed"


def test_the_trainer_allows_tf32_in_convolutions_only():
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = True
    Trainer(accelerator="cpu", logger=False)
    assert torch.backends.cudnn.allow_tf32 is True
    assert torch.backends.cuda.matmul.allow_tf32 is False


@pytest.fixture
def held(monkeypatch):
    """The thread that writes files waits until this event is set."""
    held, write = Event(), BackgroundFiles._write

    def wait(*arguments):
        assert held.wait(timeout=60)
        write(*arguments)

    monkeypatch.setattr(BackgroundFiles, "_write", staticmethod(wait))
    yield held
    held.set()


def test_a_checkpoint_has_the_state_at_its_saving(tmp_path, held):
    weight = torch.nn.Parameter(torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last))
    progress = {"epoch": 1}
    state = {"weights": {"weight": weight}, "averages": [weight.data, (0.5, weight.data)]}
    files = BackgroundFiles()
    files.save_checkpoint({"state": state, "progress": progress}, tmp_path / "last.ckpt")
    with torch.no_grad():
        weight += 1
    progress["epoch"] = 2
    state["averages"].clear()
    assert not list(tmp_path.iterdir())  # training continued before the file existed
    held.set()
    files.teardown()
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["progress"] == {"epoch": 1}
    tensors = [saved["state"]["weights"]["weight"], saved["state"]["averages"][0]]
    tensors.append(saved["state"]["averages"][1][1])
    for tensor in tensors:
        assert torch.equal(tensor, torch.zeros(4, 3, 2, 2))
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("read", ["teardown", "load"])
def test_the_last_of_several_writes_is_waited_for_and_whole(tmp_path, read):
    files, path = BackgroundFiles(), tmp_path / "new" / "last.ckpt"
    for epoch in range(20):
        files.save_checkpoint({"epoch": epoch, "weight": torch.zeros(100_000)}, path)
    if read == "teardown":
        files.teardown()
        assert torch.load(path, weights_only=True)["epoch"] == 19
    else:
        assert files.load_checkpoint(path, weights_only=True)["epoch"] == 19
    assert sorted(os.listdir(path.parent)) == ["last.ckpt", "previous.ckpt"]
    assert torch.load(path.with_name("previous.ckpt"), weights_only=True)["epoch"] == 18


def test_a_slow_disk_delays_the_next_checkpoint(tmp_path, held):
    files = BackgroundFiles()
    for number in range(files.WAITING):
        files.save_checkpoint({}, tmp_path / f"{number}.ckpt")
    saving = Thread(target=files.save_checkpoint, args=({}, tmp_path / "more.ckpt"))
    saving.start()
    saving.join(timeout=0.2)
    assert saving.is_alive()
    held.set()
    saving.join(timeout=60)
    files.teardown()
    assert len(os.listdir(tmp_path)) == files.WAITING + 1


def test_a_checkpoint_is_not_removed_before_it_is_written(tmp_path):
    """ModelCheckpoint removes the previous epoch's checkpoint in this way."""
    files = BackgroundFiles()
    files.save_checkpoint({"weight": torch.zeros(100_000)}, tmp_path / "epoch=0.ckpt")
    files.remove_checkpoint(tmp_path / "epoch=0.ckpt")
    assert not os.listdir(tmp_path)


@pytest.fixture
def full_disk(monkeypatch):
    """After a call of this, each write stops after 10 bytes with an error."""

    def write_bytes(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("call", ["save", "teardown"])
def test_an_interrupted_write_is_raised_and_keeps_the_previous_checkpoint(
    tmp_path, full_disk, call
):
    files, path = BackgroundFiles(), tmp_path / "last.ckpt"
    files.save_checkpoint({"epoch": 1}, path)
    files.teardown()
    full_disk()
    files.save_checkpoint({"epoch": 2}, path)
    wait([files._writes[0]])
    with pytest.raises(OSError, match="No space"):
        files.teardown() if call == "teardown" else files.save_checkpoint({"epoch": 3}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]
    files.teardown()  # the error is raised only once


def test_a_deleted_folder_is_named_and_stays_deleted(tmp_path):
    files, path = BackgroundFiles(), tmp_path / "run" / "last.ckpt"
    files.save_checkpoint({"epoch": 1}, path)
    files.teardown()
    shutil.rmtree(path.parent)
    files.save_checkpoint({"epoch": 2}, path)
    with pytest.raises(UserError, match=f"{path.parent} was deleted during the run"):
        files.teardown()
    assert not path.parent.exists()


def test_every_flipped_bit_and_missing_end_of_a_checkpoint_is_found(tmp_path):
    files, path = BackgroundFiles(), tmp_path / "best.ckpt"
    state = {"a": torch.arange(20.0), "b": 3}
    files.save_checkpoint(state, path)
    files.teardown()
    whole = path.read_bytes()
    for position in range(8 * len(whole)):
        content = bytearray(whole)
        content[position // 8] ^= 1 << position % 8
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged: it does not match its checksum"):
            check_archive(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is damaged"):
            check_archive(path)
    path.write_bytes(whole)
    check_archive(path)
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert torch.equal(loaded["a"], state["a"])
