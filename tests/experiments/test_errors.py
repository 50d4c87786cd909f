"""A mistake gives one line that names it and exit code 2, before any training."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import datamodules.cifar10
import experiments.run
from experiments.console import UserError
from experiments.training.cli import ExperimentCLI
from experiments.training.launch import read_launch
from lightning_modules.networks.sam_resnet import SAMResNet

ROOT = Path(__file__).parents[2]
EARLY_STOPPING = (
    "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
    "--trainer.callbacks.monitor=val/acc",
)


@pytest.fixture(scope="module")
def checkpoint(experiment):
    """A checkpoint of sam_resnet, much smaller than its default."""
    return experiment("--trainer.max_epochs=1", "--data.val_fraction=0").folder / "last.ckpt"


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--model.base_widht", "--model.base_width"),
        ("--modle.lr", "--model.lr"),
        ("--lr", "--model.lr"),
        ("--trainer.max_epoch", "--trainer.max_epochs"),
        ("--data.batchsize", "--data.batch_size"),
        ("--sed", "--seed"),
    ],
)
def test_an_unknown_flag_is_no_abbreviation_and_its_neighbours_are_named(refusal, flag, meant):
    line = refusal(flag, "3")
    assert re.match(rf"Unrecognized arguments: {flag} 3 \(did you mean .*{meant}\b", line), line


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--model.lr", "fast", "float"),
        ("--model.base_width", "3.5", "int"),
        ("--model.blocks", "[4, 4]", "blocks must be 3 or 4 positive counts"),
        ("--model.se", "perhaps", "bool"),
        ("--model.schedule", "linear", "'cosine', 'onecycle', 'warmup_onecycle', 'step'"),
        ("--data.batch_size", "64.5", "int"),
        ("--data.source", "imagenet", "'svhn', 'folder', 'synthetic', 'auto'"),
        ("--data.crop_mode", "mirror", "'zero', 'reflect'"),
        ("--trainer.max_epochs", "many", "int"),
        ("--trainer.precision", "8", "'auto', '32-true', 'bf16-mixed'"),
        ("--trainer.accelerator", "tpu", "'auto', 'cpu', 'gpu'"),
        ("--seed", "x", "int"),
        ("--wandb", "maybe", "'offline', 'online', 'disabled'"),
        ("--ema", "fast", "true or false"),
        ("--ema.decay", "fast", "float"),
        ("--swa.start", "late", "float"),
        ("--lookahead.k", "2.5", "int"),
        ("--budget.limit", "5M", "int"),
    ],
)
def test_a_mistyped_value_is_named_with_its_flag_and_an_example(refusal, flag, value, expected):
    line = refusal(flag, value)
    assert flag.removeprefix("--") in line, line
    assert value in line, line
    assert expected in line, line


@pytest.mark.parametrize(
    ("flag", "value", "answer"),
    [
        ("--seed", "-1", "seed must be in [0, 2**32), got -1"),
        ("--model.lr", "-1", "lr must be above 0, got -1.0"),
        ("--model.base_width", "0", "base_width must be 1 or more, got 0"),
        ("--model.label_smoothing", "1", "label_smoothing must be in [0, 1), got 1.0"),
        ("--data.val_fraction", "1", "val_fraction must be in [0, 1), got 1.0"),
        ("--data.batch_size", "0", "batch_size must be 1 or more, got 0"),
        ("--data.rotation", "400", "rotation must be in [0, 180], got 400.0"),
        ("--ema.decay", "1.5", "decay must be in [0, 1), got 1.5"),
        ("--lookahead.k", "0", "k must be 1 or more, got 0"),
        ("--swa.start", "1.5", "start must be in [0, 1), a share of the epochs, got 1.5"),
        ("--budget.limit", "0", "limit must be 1 or more, got 0"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_flag(refusal, flag, value, answer):
    spelt = (flag, value) if flag.startswith("--model.") else (f"{flag}={value}",)
    assert refusal(*spelt) == f"{flag}: {answer}"


def test_contradicting_values_are_both_named(refusal):
    line = refusal("--model.attention=cbam", "--model.se=false")
    assert line == (
        "--model.attention: attention must be 'se', its default, if se is off, got 'cbam'"
    )


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (
            ["--data.policy=augmix"],
            "--data.policy augmix needs its loss: set --model.jsd_weight, to 12 in its paper",
        ),
        (
            ["--model.jsd_weight=12"],
            "--model.jsd_weight 12.0 needs --data.policy augmix, got none",
        ),
        (
            ["--model.jsd_weight=12", "--data.policy=rand_augment"],
            "--model.jsd_weight 12.0 needs --data.policy augmix, got rand_augment",
        ),
        (
            ["--model.jsd_weight=12", "--data.policy=augmix", "--data.mixup_alpha=0.2"],
            "--data.policy: policy must not be augmix if MixUp or CutMix is on: AugMix's "
            "loss compares views of one image, got 'augmix'",
        ),
    ],
)
def test_augmix_and_its_loss_go_together_and_with_no_mixing(refusal, flags, answer):
    assert refusal("--data.mixup_alpha=0", *flags) == answer


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (
            ["--model.compile=graph", "--trainer.detect_anomaly=true"],
            "--trainer.detect_anomaly true does not work with CUDA graphs: set --model.compile "
            "false, got graph",
        ),
        (
            ["--model.compile=fastest"],
            "--model.compile must be true, false, 'auto', 'graph', 'reduce-overhead', "
            "'max-autotune', got fastest",
        ),
        (
            ["--model.fused=true", "--trainer.gradient_clip_val=null",
             "--trainer.precision=16-mixed"],
            "--model.fused: fused must be False in 16-mixed precision, got True: set "
            "--model.fused false, or --trainer.precision bf16-mixed",
        ),
        (
            ["--arch=speed_resnet", "--trainer.limit_train_batches=null", "--trainer.max_epochs=50",
             "--data.batch_size=1000"],
            "--trainer.max_epochs 50 would not be reached: --trainer.max_steps 290 ends training "
            "earlier; give both, -1 for no limit",
        ),
        (
            ["--trainer.devices=3", "--data.batch_size=32"],
            "--data.batch_size must be a multiple of the number of devices, 3, got 32",
        ),
    ],
)  # fmt: skip
def test_contradictory_flags_are_rejected_before_a_file_is_written(
    refusal, tmp_path, flags, answer
):
    assert refusal(*flags, f"--output={tmp_path / 'runs'}") == answer
    assert not (tmp_path / "runs").exists()


def test_an_unknown_option_of_a_callback_is_named_in_full(refusal):
    assert refusal("--ema.deacy", "0.9") == "--ema.deacy: Option 'deacy' is not accepted"


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("model:\n  widht: 3\n", "Group 'model' does not accept option 'widht'"),
        ("modle:\n  lr: 3\n", "Option 'modle.lr' is not accepted"),
        ("model:\n  lr: fast\n", "Parser key \"model.lr\": Expected a <class 'float'>"),
        ("", "--config .* must be a mapping as --print_config writes it, got None"),
    ],
)
def test_a_mistake_in_a_config_is_one_line(refusal, tmp_path, content, answer):
    config = tmp_path / "config.yaml"
    config.write_text(content)
    assert re.match(answer, refusal(f"--config={config}"))


def test_a_batch_larger_than_the_training_set_is_named(refusal, experiment):
    line = refusal("--data.batch_size=5000", act=experiment)
    assert line == "data.batch_size must be at most the 1,800 training images, got 5000"


def test_an_over_budget_network_gets_a_width_that_fits(refusal):
    over, fits = (sum(p.numel() for p in SAMResNet(width).parameters()) for width in (66, 65))
    assert fits <= 5_000_000 < over
    assert refusal("--arch=sam_resnet", "--model.base_width=66") == (
        f"{over:,} trainable parameters exceed the budget of 5,000,000 by {over - 5_000_000:,}; "
        f"base_width <= 65 fits ({fits:,})"
    )


def test_the_budget_can_be_moved(refusal):
    line = refusal("--budget.limit=1000")
    assert "trainable parameters exceed the budget of 1,000 by" in line


def test_ema_with_swa_is_refused_with_a_reason(refusal):
    line = refusal("--swa=true")  # the preset has EMA on
    assert line.startswith("EMA and SWA must not be on together: SWA changes the learning rates")
    assert line.endswith("switch one off (--ema false or --swa false)")


def test_a_run_without_validation_and_test_images_is_refused(refusal):
    line = refusal("--data.val_fraction=0", "--test=false")
    assert line == (
        "--data.val_fraction 0 leaves nothing to evaluate if the test set is not read or does not "
        "exist: use a fraction such as 0.1"
    )


def test_an_empty_validation_set_with_a_monitor_on_it_is_refused(refusal):
    line = refusal("--data.val_fraction=0", *EARLY_STOPPING)
    assert line == (
        "--trainer.callbacks: EarlyStopping monitors val/acc, but --data.val_fraction 0 leaves no "
        "validation images: set it above 0 or drop the monitor"
    )


def test_an_unknown_metric_is_found_before_the_first_epoch(refusal, tmp_path):
    stopping, _ = EARLY_STOPPING
    flags = (stopping, "--trainer.callbacks.monitor=val_acc", f"--output={tmp_path}")
    line = refusal(*flags)
    assert line.startswith("--trainer.callbacks: EarlyStopping monitors val_acc (did you mean val/")
    assert not any(tmp_path.iterdir())


def test_with_validation_images_the_same_monitor_is_fine(build):
    names = {type(callback).__name__ for callback in build(*EARLY_STOPPING).trainer.callbacks}
    assert "EarlyStopping" in names


BOMB = "\n".join(
    [f"a0: &a0 [{', '.join('x' * 9)}]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
)


@pytest.mark.parametrize("flag", ["--config", "--data"])
@pytest.mark.parametrize("content", [BOMB, "a: &a [*a]", "[" * 20_000], ids=["9x9", "self", "deep"])
def test_a_yaml_bomb_is_one_line(refusal, tmp_path, flag, content):
    path = tmp_path / "bomb.yaml"
    path.write_text(content)
    assert flag.removeprefix("--") in refusal(f"{flag}={path}")


@pytest.mark.parametrize(
    ("flag", "instead"),
    [
        ("--trainer.limit_test_batches=1", "every image is evaluated"),
        ("--trainer.limit_predict_batches=1", "every image is evaluated"),
        ("--trainer.overfit_batches=1", "limit_train_batches"),
        ("--trainer.logger=false", "--wandb"),
        ("--trainer.default_root_dir=here", "--output and --name"),
        ("--trainer.enable_checkpointing=false", "reads checkpoints"),
        ("--trainer.barebones=true", "logged and evaluated"),
        ("--trainer.fast_dev_run=1", "--quick"),
    ],
)
def test_trainer_flags_that_this_project_sets_itself_are_rejected(refusal, flag, instead):
    line = refusal(flag)
    assert line.startswith(f"{flag.partition('=')[0]} cannot be set: ")
    assert instead in line


def test_an_output_that_is_no_folder_is_named(refusal, tmp_path):
    file = tmp_path / "README.md"
    file.touch()
    assert refusal(f"--output={file}").startswith(f"--output {file} cannot be used: ")


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("--trainer.max_epochs=0", "must be 1 or more, or -1 for no limit, got 0"),
        ("--trainer.max_epochs=-1", "or --trainer.max_steps must be 1 or more"),
        ("--trainer.max_epochs=null", "or --trainer.max_steps must be 1 or more"),
        ("--trainer.max_steps=0", "must be 1 or more, or -1 for no limit, got 0"),
        ("--trainer.max_time=90", "must be DD:HH:MM:SS, got 90"),
        ("--trainer.accumulate_grad_batches=0", "must be 1 or more, got 0"),
        ("--trainer.check_val_every_n_epoch=0", "must be 1 or more, got 0"),
        ("--trainer.gradient_clip_val=-1", "must be 0 or more, got -1"),
        ("--trainer.num_nodes=0", "must be 1 or more, got 0"),
        ("--trainer.limit_train_batches=0", "0 leaves no batch of an epoch"),
        ("--trainer.limit_val_batches=0", "0 leaves no batch of an epoch"),
        ("--trainer.val_check_interval=4", "from 1 to the 3 batches of an epoch, or a share"),
        ("--trainer.val_check_interval=1.5", "a share of it in (0, 1], got 1.5"),
        ("--trainer.devices=-3", "should be an int > 0"),
        ("--trainer.strategy=dpp", "invalid strategy name"),
        ("--trainer.limit_train_batches=-1", "it has to be in [0.0, 1.0] or an int"),
        ("--data.val_fraction=0.00001", "leaves no validation image: use 0 for none"),
        ("--data.val_fraction=0.99999", "leaves no training image of a class: use a smaller "),
        ("--data.batch_size=50000", "must be at most the 45,000 training images, got 50000"),
        ("--model.rho=0.1", "needs --model.sharpness sam or asam, got none"),
        ("--data.augmix_severity=5", "needs --data.policy augmix, got none"),
        ("--model.gamma=0.1", "needs --model.schedule step, got warmup_onecycle"),
        ("--model.muon_lr=0.1", "needs --model.optimizer muon, got sgd"),
        ("--name=a/b", "must be a folder name without a path, such as first_try, got a/b"),
        ("--name=..", "must be a folder name without a path, such as first_try, got .."),
    ],
)
def test_settings_that_cannot_train_are_rejected_before_a_file_is_written(
    refusal, tmp_path, flag, answer
):
    line = refusal(flag, f"--output={tmp_path / 'runs'}")
    assert line.startswith(flag.partition("=")[0])
    assert answer in line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_a_missing_accelerator_is_named(refusal, monkeypatch, accelerator):
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    line = refusal(f"--trainer.accelerator={accelerator}")
    assert line.startswith(f"--trainer.accelerator {accelerator}: this machine has none")


def test_a_crop_beyond_the_reflected_image_is_refused_before_training(refusal):
    line = refusal("--data.crop_mode=reflect", "--data.crop_padding=32")
    assert line.startswith("--data.crop_padding: crop_padding must be less than 32 if crop_mode")


def test_a_second_process_on_a_runs_folder_is_refused(refusal, build, tiny):
    flags = tiny("--name=busy")
    launches = [read_launch(flags) for _ in range(2)]
    first = ExperimentCLI(launches[0])
    answer = f"{first.launch.folder} is in use: choose another --name"
    # The lock is checked at once, or after the data is read.
    for act in (build, lambda *_: ExperimentCLI(launches[1])):
        assert refusal("--name=busy", act=act).startswith(answer)


def test_missing_data_gives_a_command_and_creates_no_folder(refusal, tmp_path):
    output = tmp_path / "runs"
    line = refusal(
        "--data.source=cifar10",
        f"--data.root={tmp_path}",
        "--data.download=false",
        f"--output={output}",
    )
    assert str(tmp_path) in line
    assert "--data.root" in line
    assert "--data.source synthetic" in line
    assert not output.exists()


@pytest.mark.real_data
def test_a_damaged_data_file_is_named(refusal, tmp_path, cifar10_root):
    folder = tmp_path / "cifar-10-batches-py"
    shutil.copytree(cifar10_root / folder.name, folder)
    damaged = folder / "data_batch_3"
    damaged.chmod(0o644)
    with damaged.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\0\1\2\3")
    line = refusal("--data.source=cifar10", f"--data.root={tmp_path}", "--data.download=false")
    assert line.startswith(f"{damaged} is damaged")


def test_a_checkpoint_with_other_widths_is_refused(refusal, checkpoint):
    assert refusal(f"--ckpt_path={checkpoint}", "--model.base_width=5") == (
        "the checkpoint is of a SAMResNetClassifier with other hyper-parameters: "
        "network.head.weight has shape (10, 16) there and (10, 20) here"
    )


@pytest.mark.parametrize(
    ("flag", "was"), [("--model.lr=0.05", 0.1), ("--model.decay_norm_bias=false", True)]
)
def test_settings_in_a_checkpoints_optimizer_cannot_be_changed(refusal, checkpoint, flag, was):
    name, value = flag.split("=")
    answer = f"{name} must stay {was}, as in --ckpt_path {checkpoint}, got {value.title()}"
    assert refusal(f"--ckpt_path={checkpoint}", flag) == answer


def test_a_checkpoint_of_another_architecture_is_refused(checkpoint, tmp_path):
    argv = ["--arch=resnet", f"--ckpt_path={checkpoint}", f"--output={tmp_path / 'runs'}"]
    argv += ["--data.source=synthetic", "--wandb=disabled", "--trainer.accelerator=cpu"]
    line = "the checkpoint is of SAMResNetClassifier, the network is ResNetClassifier"
    with pytest.raises(UserError, match=line):
        ExperimentCLI(read_launch(argv))
    assert not (tmp_path / "runs").exists()


def test_weights_alone_cannot_be_continued(refusal, experiment):
    best = experiment("--trainer.max_epochs=1").folder / "best.ckpt"
    assert refusal(f"--ckpt_path={best}") == (
        f"--ckpt_path {best} contains only weights: name the last.ckpt of its run"
    )


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\3\4 torn", b"\x80\x04."], ids=["empty", "text", "zip", "pickle"]
)
def test_a_file_that_is_no_checkpoint_is_named(refusal, tmp_path, content):
    path = tmp_path / "file.ckpt"
    path.write_bytes(content)
    assert refusal(f"--ckpt_path={path}").startswith(
        f"--ckpt_path {path} is damaged or is not a ch"
    )


def test_a_torn_checkpoint_is_named(refusal, tmp_path, checkpoint):
    path = tmp_path / "torn.ckpt"
    whole = checkpoint.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert refusal(f"--ckpt_path={path}").startswith(
        f"--ckpt_path {path} is damaged or is not a ch"
    )


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (torch.zeros(2), "--ckpt_path {} is not a checkpoint: Tensor"),
        ({"weight": torch.zeros(2)}, "the checkpoint is of None, the network is SAMResNetClassif"),
    ],
)
def test_another_file_of_torch_is_no_checkpoint(refusal, tmp_path, content, answer):
    path = tmp_path / "tensor.ckpt"
    torch.save(content, path)
    assert refusal(f"--ckpt_path={path}").startswith(answer.format(path))


def test_a_full_disk_ends_the_command_with_one_line(
    tiny, few_images, tmp_path, monkeypatch, capsys
):
    """The error occurs in a thread, which writes the best checkpoint."""

    def write_bytes(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(datamodules.cifar10, "synthetic_cifar10", few_images)
    monkeypatch.setattr(experiments.run, "keep_freed_memory", lambda: None)
    folder = tmp_path / "full"
    argv = tiny(f"--output={tmp_path}", f"--name={folder.name}")
    monkeypatch.setattr(sys, "argv", ["experiments/run.py", *argv])
    with pytest.raises(SystemExit) as end:
        experiments.run.main()
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: the disk is full: [Errno 28] No space left on device")
    assert not list(folder.glob("*.ckpt*"))


def test_the_command_ends_with_code_2_and_one_line_alone():
    command = [sys.executable, "experiments/run.py", "--arch", "resnet", "--model.lr", "-1"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: --model.lr: lr must be above 0, got -1.0\n"
