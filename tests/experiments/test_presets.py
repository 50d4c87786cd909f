import pytest
import yaml
from lightning.pytorch.callbacks import DeviceStatsMonitor

from callbacks import EMA, SWA, Lookahead, ParameterBudget
from experiments.presets import CONFIGS, EXPERIMENTS
from experiments.training.cli import ExperimentCLI
from experiments.training.configuration import resolve_config
from experiments.training.launch import read_launch
from lightning_modules.networks import count_parameters


@pytest.fixture
def resolve(tmp_path):
    """Build an experiment by its flags, with a temporary output folder."""

    def resolve(*flags):
        fixed = (f"--output={tmp_path}", "--data.source=synthetic", "--wandb=disabled")
        return ExperimentCLI(read_launch([*flags, *fixed, "--trainer.accelerator=cpu"]))

    return resolve


def settings(cli):
    return yaml.safe_load(cli.resolved)


def callback(cli, kind):
    (found,) = [x for x in cli.trainer.callbacks if isinstance(x, kind)]
    return found


def kinds(cli):
    return {type(x) for x in cli.trainer.callbacks} & {EMA, SWA, Lookahead, ParameterBudget}


def test_every_architecture_has_a_preset_and_every_preset_an_architecture():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*EXPERIMENTS, "quick"}


@pytest.mark.parametrize("arch", EXPERIMENTS)
def test_a_presets_settings_are_built(arch, resolve):
    cli = resolve(f"--arch={arch}")
    assert type(cli.model) is EXPERIMENTS[arch]
    # Only a teacher exceeds the budget.
    assert (count_parameters(cli.model.network) <= 5_000_000) == (arch != "dms_teacher")
    preset = yaml.safe_load((CONFIGS / f"{arch}.yaml").read_text())
    resolved = settings(cli)
    for group, values in preset.items():
        assert values.items() <= resolved[group].items(), group
    for group, built in (("model", cli.model), ("data", cli.datamodule)):
        # YAML has no tuples.
        hparams = {k: [*v] if isinstance(v, tuple) else v for k, v in built.hparams.items()}
        assert all(hparams[name] == value for name, value in preset[group].items())
    assert cli.trainer.max_epochs == preset["trainer"]["max_epochs"]
    # Callbacks that a preset does not name are off. Only the parameter budget is on.
    for key in {"lookahead", "ema", "swa"} - preset.keys():
        assert resolved[key] is False
    assert resolved["budget"] is True or arch == "dms_teacher"


@pytest.mark.parametrize("arch", ["efficient_resnet", "dms_resnet", "dms_teacher"])
def test_efficient_resnets_recipe_is_its_authors_and_its_descendants_differ_by_a_few(arch, resolve):
    cli = resolve(f"--arch={arch}")
    resolved = settings(cli)
    model, data, trainer = (resolved[x] for x in ("model", "data", "trainer"))
    sizes = {"dms_teacher": 21_282_702}
    assert count_parameters(cli.model.network) == sizes.get(arch, 4_697_742)
    assert (trainer["gradient_clip_val"], trainer["gradient_clip_algorithm"]) == (0.1, "value")
    assert (model["lr"], model["momentum"], model["nesterov"]) == (0.1, 0.9, False)
    assert (model["weight_decay"], model["schedule"], model["warmup"]) == (5e-4, "cosine", 0)
    assert (data["batch_size"], data["crop_padding"], data["crop_mode"]) == (128, 4, "zero")
    assert (data["flip"], data["cutout"]) == (0.5, 0)
    assert resolved["lookahead"] == {"k": 5, "alpha": 0.5, "schedule": "constant"}
    student = arch == "dms_resnet"
    assert (model["dropout"], data["mixup_alpha"]) == ((0.1, 1.0) if student else (0.0, 0.0))
    if student:
        expected = {"temperature": 6.0, "weight": 1.0, "reduction": "mean"}
        assert resolved["distill"] == expected


def test_sam_resnets_preset_is_its_papers_recipe(resolve):
    cli = resolve("--arch=sam_resnet")
    resolved = settings(cli)
    model, data = resolved["model"], resolved["data"]
    assert count_parameters(cli.model.network) == 4_733_610
    assert (cli.trainer.max_epochs, cli.trainer.gradient_clip_val) == (200, 1.0)
    assert cli.trainer.gradient_clip_algorithm in (None, "norm")
    assert (model["lr"], model["momentum"], model["nesterov"]) == (0.1, 0.9, True)
    assert (model["weight_decay"], model["decay_norm_bias"]) == (5e-4, True)
    assert (model["schedule"], model["rising"]) == ("warmup_onecycle", 0.4)
    assert model["warmup"] * 200 == 10
    assert (model["warmup_lr"], model["label_smoothing"]) == (0.001, 0.0)
    assert (data["batch_size"], data["val_fraction"]) == (128, 0.1)
    assert (data["crop_padding"], data["crop_mode"], data["flip"]) == (4, "zero", 0.5)
    assert (data["mixup_alpha"], data["mixup_p"], data["mixup_ramp"]) == (0.3, 1.0, True)
    assert (data["cutout"], data["cutmix_alpha"], data["rotation"]) == (16, 0.0, 0.0)
    assert kinds(cli) == {ParameterBudget, Lookahead, EMA}
    lookahead = callback(cli, Lookahead)
    assert (lookahead.k, lookahead.alpha) == (5, 0.5)
    assert callback(cli, EMA).decay == 0.999


def test_resnets_preset_is_sam_resnets_without_its_papers_additions(resolve):
    added = {"se", "se_reduction", "attention", "stem_se", "dropout", "mixup_alpha", "mixup_ramp"}
    ours, theirs = settings(resolve("--arch=resnet")), settings(resolve("--arch=sam_resnet"))
    for group in ("trainer", "model", "data", "lookahead"):
        left = {k: v for k, v in ours[group].items() if k not in added}
        assert left == {k: v for k, v in theirs[group].items() if k not in added}, group
    assert ours["data"]["mixup_alpha"] == 0
    assert ours["ema"] is False


def test_enhanced_efficient_resnets_preset_is_its_papers_recipe(resolve):
    cli = resolve("--arch=enhanced_efficient_resnet")
    resolved = settings(cli)
    model, data = resolved["model"], resolved["data"]
    assert count_parameters(cli.model.network) == 4_913_705
    assert (cli.trainer.max_epochs, cli.trainer.gradient_clip_val) == (500, 1.0)
    assert (model["lr"], model["momentum"], model["nesterov"]) == (0.1, 0.9, False)
    assert (model["weight_decay"], model["decay_norm_bias"]) == (5e-4, True)
    assert (model["schedule"], model["warmup"]) == ("cosine", 0.0)
    assert (model["label_smoothing"], model["dropout"]) == (0.1, 0.3)
    assert (data["batch_size"], data["val_fraction"]) == (128, 0.1)
    assert (data["crop_padding"], data["crop_mode"], data["flip"]) == (4, "reflect", 0.5)
    assert (data["rotation"], data["mixup_p"], data["cutmix_p"]) == (15.0, 0.3, 0.3)
    switched_on = ("brightness", "contrast", "saturation", "hue", "perspective", "perspective_p")
    assert all(data[name] > 0 for name in (*switched_on, "mixup_alpha", "cutmix_alpha"))
    assert (data["cutout"], data["mixup_ramp"]) == (0, False)
    assert kinds(cli) == {ParameterBudget, EMA}
    assert callback(cli, EMA).decay == 0.999


def test_speed_resnets_preset_equals_the_speed_runs_with_muon(resolve):
    cli = resolve("--arch=speed_resnet")
    resolved = settings(cli)
    model, data = resolved["model"], resolved["data"]
    assert count_parameters(cli.model.network) == 1_971_352
    assert (data["batch_size"], resolved["trainer"]["precision"]) == (1_250, "bf16-mixed")
    # Their loss is a sum, and their head is divided by 256 instead of 9.
    scale = data["batch_size"] * (9 / 256) ** 2
    assert model["lr"] == pytest.approx(0.5415 * scale, rel=0.01)
    assert model["lr"] * model["weight_decay"] == pytest.approx(1.0418e-6 * 1_250, rel=0.01)
    assert model["lr"] * model["bias_lr_factor"] == pytest.approx(0.0573 * 1_250, rel=0.01)
    assert (model["momentum"], model["nesterov"]) == (0.825, True)
    assert (model["optimizer"], model["muon_steps"]) == ("muon", 3)
    assert (model["schedule"], model["rising"], model["triangle"]) == ("triangular", 0, [1, 0])
    assert (model["whitening"], model["dirac"], model["bn_momentum"]) == (True, True, 0.4)
    assert (data["crop_padding"], data["crop_mode"]) == (2, "reflect")
    assert (data["flip"], data["flip_mode"]) == (0.5, "alternating")
    assert kinds(cli) == {ParameterBudget}


def test_speed_resnet_96_is_its_papers_recipe_with_a_network_within_the_budget(resolve):
    cli = resolve("--arch=speed_resnet_96")
    resolved = settings(cli)
    model, data = resolved["model"], resolved["data"]
    assert count_parameters(cli.model.network) == 4_959_576
    batch_size, momentum = data["batch_size"], model["momentum"]
    assert (batch_size, momentum, model["nesterov"]) == (1_000, 0.85, True)
    # The paper's rate and decay are for a loss summed over 1,024 images, without momentum.
    scale = batch_size / 1_024 / (1 + 1 / (1 - momentum))
    assert model["lr"] == pytest.approx(9.0 * scale, rel=1e-3)
    assert model["lr"] * model["weight_decay"] == pytest.approx(0.012 * scale, rel=5e-3)
    assert (model["bias_lr_factor"], model["optimizer"]) == (64.0, "sgd")
    assert (model["schedule"], model["rising"]) == ("triangular", 0.23)
    assert (model["triangle"], model["label_smoothing"]) == ([0.2, 0.07], 0.2)
    assert (data["crop_padding"], data["crop_mode"], data["cutout"]) == (4, "reflect", 12)
    assert data["flip_mode"] == "alternating"
    assert kinds(cli) == {ParameterBudget, Lookahead}
    lookahead = callback(cli, Lookahead)
    assert (lookahead.k, lookahead.schedule) == (5, "cubic")
    assert lookahead.alpha == pytest.approx(1 - 0.95**5, abs=1e-3)
    # The last step updates Lookahead's slow weights, so these weights are evaluated.
    assert 45_000 // batch_size * cli.trainer.max_epochs % lookahead.k == 0


@pytest.mark.parametrize(
    ("arch", "parameters", "epochs", "decay", "smoothing", "cutout"),
    [
        ("champion", 4_298_970, 600, 5e-4, 0.1, 16),
        ("champion_1m", 970_534, 1_200, 2e-4, 0.0, 8),
    ],
)
def test_the_champions_presets_are_their_first_bets(
    arch, parameters, epochs, decay, smoothing, cutout, resolve
):
    cli = resolve(f"--arch={arch}")
    resolved = settings(cli)
    model, data = resolved["model"], resolved["data"]
    assert count_parameters(cli.model.network) == parameters
    assert (cli.trainer.max_epochs, resolved["trainer"]["precision"]) == (epochs, "bf16-mixed")
    assert (model["lr"], model["momentum"], model["nesterov"]) == (0.4, 0.9, True)
    assert (model["weight_decay"], model["decay_norm_bias"]) == (decay, False)
    assert (model["schedule"], model["label_smoothing"]) == ("cosine", smoothing)
    assert model["warmup"] * epochs == pytest.approx(5, abs=0.01)
    assert model["channels_last"] is True
    assert (data["batch_size"], data["policy"], data["cutout"]) == (512, "trivial_augment", cutout)
    assert (data["crop_padding"], data["flip"]) == (4, 0.5)
    assert (data["mixup_alpha"], data["cutmix_alpha"]) == (0, 0)
    assert kinds(cli) == {ParameterBudget, EMA}
    assert (callback(cli, EMA).decay, callback(cli, EMA).warmup) == (0.999, True)


def test_flags_override_configs_and_configs_override_the_preset(resolve, tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("model: {lr: 0.2, momentum: 0.8}\ndata: {cutout: 8}\nema: {decay: 0.9}\n")
    second.write_text("model: {momentum: 0.7}\n")
    flags = (f"--config={first}", f"--config={second}", "--data.cutout=4")
    resolved = settings(resolve("--arch=sam_resnet", *flags))
    model, data = resolved["model"], resolved["data"]
    assert (model["lr"], model["momentum"], data["cutout"]) == (0.2, 0.7, 4)
    assert resolved["ema"] == {"decay": 0.9, "warmup": True}
    assert (model["nesterov"], data["mixup_alpha"]) == (True, 0.3)  # from the preset


@pytest.mark.parametrize("form", ["{}", "[{}]"], ids=["alone", "in a list"])
def test_a_config_can_add_a_callback(form, resolve, tmp_path):
    config = tmp_path / "config.yaml"
    name = "lightning.pytorch.callbacks.DeviceStatsMonitor"
    config.write_text("trainer: {callbacks: " + form.format(f"{{class_path: {name}}}") + "}\n")
    cli = resolve("--arch=resnet", f"--config={config}")
    assert callback(cli, DeviceStatsMonitor)


def test_the_seed_reaches_the_data_too(resolve):
    resolved = settings(resolve("--arch=resnet", "--seed=7"))
    assert (resolved["seed"], resolved["data"]["seed"], resolved["seed_everything"]) == (7, 7, 7)
    assert resolved["data"]["split_seed"] == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--ema=false"], {ParameterBudget, Lookahead}),
        (["--lookahead=false", "--budget=false"], {EMA}),
        (["--ema=false", "--swa=true"], {ParameterBudget, Lookahead, SWA}),
        (["--swa.start=0.5", "--ema=false"], {ParameterBudget, Lookahead, SWA}),
        (["--ema=false", "--ema.decay=0.9"], {ParameterBudget, Lookahead, EMA}),
    ],
)
def test_callbacks_are_switched_by_flags(flags, expected, resolve):
    assert kinds(resolve("--arch=sam_resnet", *flags)) == expected


def test_callbacks_are_tuned_by_flags(resolve):
    cli = resolve("--arch=sam_resnet", "--ema=false", "--swa.start=0.5", "--lookahead.alpha=0.8")
    assert (callback(cli, SWA).start, callback(cli, SWA).lr) == (0.5, None)
    # The other arguments keep the preset's values.
    assert (callback(cli, Lookahead).alpha, callback(cli, Lookahead).k) == (0.8, 5)
    assert callback(resolve("--arch=sam_resnet", "--ema.warmup=false"), EMA).decay == 0.999


@pytest.mark.parametrize(("flag", "decay"), [("--ema=true", 0.999), ("--ema.decay=0.9", 0.9)])
def test_a_callback_that_the_preset_lacks_can_be_switched_on(flag, decay, resolve):
    cli = resolve("--arch=resnet", flag)
    assert callback(cli, EMA).decay == decay
    order = [type(x) for x in cli.trainer.callbacks]
    assert order.index(Lookahead) < order.index(EMA)


@pytest.mark.parametrize("arch", EXPERIMENTS)
def test_quick_is_small_and_short_and_otherwise_the_preset(arch, resolve):
    quick, full = resolve(f"--arch={arch}", "--quick"), resolve(f"--arch={arch}")
    small = EXPERIMENTS[arch].quick
    assert small.items() <= dict(quick.model.hparams).items()
    # Half the width, or less; the smallest preset is small enough for --quick.
    limit = max(count_parameters(full.model.network) / 3, 25_000)
    assert count_parameters(quick.model.network) < limit
    assert settings(quick)["model"] == settings(full)["model"] | small | {"compile": False}
    assert (quick.trainer.max_epochs, quick.trainer.max_steps) == (4, -1)
    assert kinds(quick) == kinds(full)
    assert settings(quick)["quick"] is True


def test_a_config_can_be_quick(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("arch: resnet\nquick: true\n")
    assert resolve_config([f"--config={config}"]) == resolve_config(["--arch=resnet", "--quick"])


def test_flags_override_quick(resolve):
    cli = resolve("--quick", "--arch=sam_resnet", "--model.base_width=4", "--trainer.max_epochs=2")
    assert (cli.model.hparams["base_width"], cli.trainer.max_epochs) == (4, 2)


def test_quick_uses_synthetic_images_without_cifar10(tmp_path):
    argv = ["--arch=resnet", "--quick", f"--output={tmp_path / 'runs'}", "--wandb=disabled"]
    argv += [f"--data.root={tmp_path}", "--data.download=false", "--trainer.accelerator=cpu"]
    assert ExperimentCLI(read_launch(argv)).datamodule.source == "synthetic"


@pytest.mark.parametrize("flags", [[], ["--ema=false", "--swa.start=0.5", "--quick"]])
def test_the_output_of_print_config_is_a_config(flags, resolve, tmp_path, capsys):
    flags = ["--arch=sam_resnet", "--model.lr=0.3", *flags]
    with pytest.raises(SystemExit) as end:
        resolve(*flags, "--print_config")
    assert end.value.code in (None, 0)
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    again, direct = settings(resolve(f"--config={printed}")), settings(resolve(*flags))
    assert again == direct
    assert again["model"]["lr"] == 0.3


def test_a_runs_config_gives_the_same_settings(resolve, tmp_path):
    cli = resolve("--arch=wide_resnet", "--swa.start=0.6", "--data.cutout=4", "--seed=3")
    written = tmp_path / "config.yaml"
    written.write_text(cli.resolved)
    assert settings(resolve(f"--config={written}")) == settings(cli)


@pytest.mark.parametrize(
    ("arch", "flags"),
    [
        ("sam_resnet", ["--model.attention {se,cbam,coordinate}", "--model.base_width"]),
        ("wide_resnet", ["--model.depth", "--model.widen_factor", "--data.cutmix_alpha"]),
    ],
)
def test_help_lists_an_architectures_flags_with_their_meaning(arch, flags, resolve, capsys):
    with pytest.raises(SystemExit) as end:
        resolve(f"--arch={arch}", "--help", "all")
    assert end.value.code in (None, 0)
    text = capsys.readouterr().out
    for flag in [*flags, "--trainer.max_epochs", "--ema", "--quick", "--ckpt_path"]:
        assert flag in text, flag
    assert "peak learning rate of SGD" in text
