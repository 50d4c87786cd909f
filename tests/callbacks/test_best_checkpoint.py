import shutil

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import EMA, SWA, BestCheckpoint, LastCheckpoint


@pytest.fixture
def graded(tiny):
    """Tiny with a given accuracy in each epoch; an average has 1 - accuracy."""

    class Graded(tiny):
        grades = (0.5, 0.9, 0.7, 0.9)

        def evaluate(self, network, batch, suffix):
            grade = self.grades[self.trainer.current_epoch]
            grade = 1 - grade if suffix else grade
            self._sums[suffix] = torch.tensor([0.0, grade, 1.0])

    return Graded


def saved(path):
    return torch.load(path, weights_only=True)


def test_lightnings_checkpoint_fails_if_its_metric_comes_late(fit, tiny, tmp_path):
    own = ModelCheckpoint(tmp_path, monitor="val/acc_swa", mode="max")
    with pytest.raises(MisconfigurationException, match="could not find the monitored key"):
        fit(tiny(), SWA(start=0.5), own, max_epochs=4)


@pytest.mark.parametrize(
    ("every", "best_epoch"),
    # 1 - 0.7 in epoch 2, or 1 - 0.9 in epoch 3, if every second epoch is validated.
    [(1, 2), (2, 3)],
)
def test_swa_has_its_best_checkpoint_though_it_starts_late(
    fit, graded, tmp_path, every, best_epoch
):
    best = BestCheckpoint(str(tmp_path), "_swa")
    fit(graded(), SWA(start=0.5), best, max_epochs=4, check_val_every_n_epoch=every)
    checkpoint = saved(tmp_path / "best_swa.ckpt")
    assert checkpoint["epoch"] == best_epoch
    assert checkpoint["score"] == best.best["score"] == pytest.approx(0.3 if every == 1 else 0.1)


def test_raw_and_averaged_weights_have_one_file_each(fit, graded, tmp_path):
    checkpoints = [BestCheckpoint(str(tmp_path), suffix) for suffix in ("", "_ema")]
    fit(graded(), EMA(), *checkpoints, max_epochs=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "best_ema.ckpt"]
    raw, ema = saved(tmp_path / "best.ckpt"), saved(tmp_path / "best_ema.ckpt")
    # Epoch 1 is the first with 0.9. Epoch 0 is the worst, so it is the best of the average.
    assert (raw["epoch"], ema["epoch"]) == (1, 0)
    assert (raw["global_step"], ema["global_step"]) == (14, 7)


@pytest.mark.parametrize(("suffix", "average"), [("", None), ("_ema", EMA), ("_swa", SWA)])
def test_the_file_contains_only_the_validated_weights(fit, tiny, tmp_path, suffix, average):
    averages = [average()] if average else []
    module = tiny()
    fit(module, *averages, BestCheckpoint(str(tmp_path), suffix), max_epochs=1)
    checkpoint = saved(tmp_path / f"best{suffix}.ckpt")
    assert checkpoint.keys() == {
        "score",
        "global_step",
        "epoch",
        "pytorch-lightning_version",
        "architecture",
        "hyper_parameters",
        "state_dict",
    }
    network = averages[0].network if averages else module.network
    expected = {f"network.{name}": value for name, value in network.state_dict().items()}
    assert checkpoint["state_dict"].keys() == expected.keys()
    assert all(torch.equal(checkpoint["state_dict"][name], x) for name, x in expected.items())
    assert "network.1.running_mean" in expected  # BatchNorm's
    assert checkpoint["score"] == module.validations[0][f"val/acc{suffix}"]
    # Lightning can load the file as a module.
    loaded = tiny.load_from_checkpoint(tmp_path / f"best{suffix}.ckpt", weights_only=True)
    assert all(torch.equal(loaded.state_dict()[name], x) for name, x in expected.items())


def test_a_resumed_run_remembers_the_best_so_far(fit, graded, tmp_path):
    def callbacks():
        return EMA(), BestCheckpoint(str(tmp_path)), BestCheckpoint(str(tmp_path), "_ema")

    last = ModelCheckpoint(tmp_path, filename="last")
    fit(graded(), *callbacks(), last, max_epochs=2)
    resumed = callbacks()
    fit(graded(), *resumed, max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    assert saved(tmp_path / "best.ckpt")["epoch"] == 1
    assert saved(tmp_path / "best_ema.ckpt")["epoch"] == 0
    assert resumed[1].best["score"] == pytest.approx(0.9)


@pytest.mark.parametrize("later", ["better", "missing"])
def test_a_file_newer_than_the_restored_state_is_replaced(fit, graded, tmp_path, later):
    """After a kill the file is newer than the restored state; a new folder has no file."""

    class Worse(graded):
        grades = (0.5, 0.4, 0.3, 0.4)

    path = tmp_path / "best.ckpt"
    last = ModelCheckpoint(tmp_path, filename="first", save_top_k=-1)
    fit(graded(), BestCheckpoint(str(tmp_path)), last, max_epochs=1)
    if later == "better":
        fit(graded(), BestCheckpoint(str(tmp_path)), max_epochs=2)
        assert saved(path)["epoch"] == 1
    else:
        path.unlink()
    # The repeated epochs have other results than before, as on a GPU.
    best = BestCheckpoint(str(tmp_path))
    fit(Worse(), best, max_epochs=4, ckpt_path=tmp_path / "first.ckpt")
    assert saved(path)["epoch"] == 1
    assert saved(path)["score"] == best.best["score"] == pytest.approx(0.4)


def test_a_copied_run_remembers_the_best_and_leaves_the_original_unchanged(fit, graded, tmp_path):
    def callbacks(folder):
        return BestCheckpoint(str(folder)), LastCheckpoint(str(folder))

    original, copied = tmp_path / "original", tmp_path / "copied"
    fit(graded(), *callbacks(original), max_epochs=2)
    shutil.copytree(original, copied)
    files = {path.name: path.read_bytes() for path in original.iterdir()}
    resumed = callbacks(copied)
    fit(graded(), *resumed, max_epochs=4, ckpt_path=copied / "last.ckpt")
    assert saved(copied / "best.ckpt")["epoch"] == 1
    assert resumed[0].best["score"] == pytest.approx(0.9)
    assert saved(copied / "last.ckpt")["epoch"] == 3
    assert {path.name: path.read_bytes() for path in original.iterdir()} == files


def test_the_sanity_check_is_no_candidate(fit, graded, tmp_path):
    class BestBeforeTraining(graded):
        def evaluate(self, network, batch, suffix):
            super().evaluate(network, batch, suffix)
            if self.trainer.sanity_checking:
                self._sums[suffix][1] = 1.0

    best = BestCheckpoint(str(tmp_path))
    fit(BestBeforeTraining(), best, num_sanity_val_steps=2)
    assert best.best["score"] == pytest.approx(0.9)


@pytest.mark.parametrize("options", [{"val": []}, {"val": None}, {"limit_val_batches": 0}])
def test_without_a_validation_set_it_refuses(fit, tiny, tmp_path, options):
    with pytest.raises(MisconfigurationException, match="validation set must not be empty"):
        fit(tiny(), BestCheckpoint(str(tmp_path)), **options)


def test_validating_every_second_epoch_is_no_reason_to_refuse(fit, graded, tmp_path):
    fit(
        graded(),
        BestCheckpoint(str(tmp_path)),
        max_epochs=4,
        check_val_every_n_epoch=2,
        num_sanity_val_steps=0,
    )
    assert saved(tmp_path / "best.ckpt")["epoch"] == 1


def test_a_metric_without_values_gives_a_warning(fit, tiny, tmp_path):
    with pytest.warns(UserWarning, match=r"best_swa\.ckpt was not written: no val/acc_swa"):
        fit(tiny(), BestCheckpoint(str(tmp_path), "_swa"))


def test_a_run_that_starts_over_replaces_the_file(fit, graded, tmp_path):
    for max_epochs in (4, 1):
        fit(graded(), BestCheckpoint(str(tmp_path)), max_epochs=max_epochs)
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
    assert saved(tmp_path / "best.ckpt")["epoch"] == 0
