"""A student learns from finished runs."""

import shutil

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from experiments.exports.exporting import pretrained
from experiments.inference.finished import open_run
from experiments.training.teachers import open_teacher

RECIPES = {
    "MixUp, EMA, Lookahead and accumulation": ("--trainer.accumulate_grad_batches=2",),
    "CutMix, SWA and SAM": (
        *("--data.mixup_alpha=0", "--data.cutmix_alpha=1", "--model.sharpness=sam"),
        *("--ema=false", "--swa.start=0.4", "--swa.lr=0.05"),
    ),
}


SPEED = ("--arch=speed_resnet", "--model.base_width=8", "--model.lr=0.1")


class Interrupt(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            raise InterruptedError


@pytest.fixture(scope="module")
def teacher(experiment):
    return experiment(*SPEED).folder


@pytest.fixture(scope="module")
def exported(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    pretrained(open_run(teacher), "raw", "float32").save_pretrained(folder)
    return folder


def test_a_record_has_the_digest_by_which_students_name_their_teacher(teacher):
    assert open_teacher(str(teacher)).digest == open_run(teacher).record.weights_digest


def weights(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_student_equals_an_undisturbed_one(experiment, command, teacher, recipe):
    flags = (f"--teacher={teacher}", *RECIPES[recipe])
    undisturbed = experiment(*flags)
    with pytest.raises(InterruptedError):
        command(
            ["--arch=sam_resnet", *undisturbed.cli.launch.arguments, "--name=interrupted"],
            callbacks=[Interrupt()],
        )
    folder = undisturbed.folder.with_name("interrupted")
    again = ["--arch=sam_resnet", f"--output={folder.parent}", "--name=interrupted"]
    resumed = command([*again, "--ckpt_path=last"])
    torch.testing.assert_close(weights(folder), weights(undisturbed.folder), rtol=0, atol=0)
    assert resumed.record.scores == undisturbed.record.scores
    shutil.rmtree(folder)


def test_config_and_record_name_the_teacher_and_its_digest(experiment, teacher, exported):
    run = experiment(f"--teacher=['{teacher}', '{exported}']", "--distill.weight=1")
    named = run.record.config["teacher"]
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["teacher"] == named
    assert [name.partition("@")[0] for name in named] == [str(teacher), str(exported)]
    assert run.record.config["distill"] == {
        "temperature": 4.0, "weight": 1.0, "reduction": "batchmean",
    }  # fmt: skip
    assert run.record.parameters == experiment().record.parameters


def test_the_exported_network_teaches_the_same(experiment, teacher, exported):
    ours, theirs = (experiment(f"--teacher={x}").folder for x in (teacher, exported))
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=0)


def test_a_teacher_that_changed_is_rejected(experiment, refusal, teacher, tmp_path):
    copy = shutil.copytree(teacher, tmp_path / "copy")
    run = experiment(f"--teacher={copy}")
    name = run.record.config["teacher"][0]
    state = torch.load(copy / "best.ckpt", weights_only=True)
    state["state_dict"]["network.head.weight"][0, 0] += 1e-3
    torch.save(state, copy / "best.ckpt")
    line = refusal(f"--teacher={name}")
    assert line.startswith(f"--teacher {copy}: the weights of best.ckpt have changed since")


@pytest.mark.parametrize(
    ("precision", "student"), [("64-true", ()), ("64-true", SPEED), ("bf16-mixed", SPEED)]
)
def test_the_teacher_computes_in_the_training_precision(experiment, teacher, precision, student):
    run = experiment(f"--teacher={teacher}", f"--trainer.precision={precision}", *student)
    types = {x.dtype for x in run.cli.model.distillation.teachers[0].parameters()}
    assert types == {x.dtype for x in run.cli.model.parameters()}
    assert run.record.precision == precision


def test_mistakes_are_one_line(refusal, teacher, exported, tmp_path):
    damaged = shutil.copytree(exported, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"no tensors")
    torn = shutil.copytree(teacher, tmp_path / "torn")
    (torn / "best.ckpt").write_bytes((teacher / "best.ckpt").read_bytes()[:-9])
    last = f"--ckpt_path={teacher / 'last.ckpt'}"
    for flags, line in {
        (f"--teacher={tmp_path}",): "holds no finished run",
        (f"--teacher={teacher / 'best.ckpt'}",): "is a file: name the folder of a finished run",
        (f"--teacher={damaged}",): "cannot be read",
        (f"--teacher={torn}",): "best.ckpt is damaged",
        (f"--teacher={teacher}", last, "--trainer.max_epochs=9"): "is a checkpoint of --teacher",
        ("--distill.temperature=2",): "--distill.temperature needs --teacher",
        ('--distill={"weight": 0.5}',): "--distill needs --teacher",
        (f"--teacher={teacher}", "--distill.weight=2"): "--distill.weight must be in [0, 1]",
    }.items():
        assert line in refusal(*flags)


@pytest.mark.parametrize(
    ("split", "told"),
    [
        ("--data.split_seed=0", False),  # the teacher's
        ("--data.split_seed=1", True),
        ("--data.val_fraction=0.3", True),
        ("--data.val_fraction=0", False),  # nothing is selected
    ],
)
def test_a_teacher_that_may_know_validation_images_is_announced(
    build, capsys, teacher, split, told
):
    build(f"--teacher={teacher}", split)
    assert (f"--teacher {teacher} has another split" in capsys.readouterr().out) == told


def test_a_teacher_of_other_classes_is_rejected(refusal, teacher):
    line = refusal(f"--teacher={teacher}", "--data.dataset=cifar100")
    assert f"--teacher {teacher} has other classes than the training images" in line
