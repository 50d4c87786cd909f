"""`--fit_budget` chooses the largest network within a number of parameters."""

import re
import time
from functools import partial

import pytest
import torch
import yaml

from experiments.claims.matching import training_of
from experiments.presets import EXPERIMENTS
from experiments.training.configuration import resolve_config
from experiments.training.experiment import operations_per_image
from lightning_modules.fitting import ALIGNED, Fit, aligned_fit, largest_fit, preferred_fit
from lightning_modules.networks import count_parameters

DECIDES = "--fit_budget decides base_width: leave out --model.base_width, or set --fit_budget null$"


def parameters(arch, model, **changes):
    with torch.device("meta"):
        module = EXPERIMENTS[arch](**model | changes)
    return count_parameters(module.network)


@pytest.mark.parametrize("arch", EXPERIMENTS)
@pytest.mark.parametrize("budget", [300_000, 5_000_000])
def test_the_fitted_network_fits_and_the_next_step_does_not(arch, budget):
    config = resolve_config([f"--arch={arch}", f"--fit_budget={budget}"])
    cls, model = EXPERIMENTS[arch], config["model"]
    steps = round(model[cls.grows] / cls.grows_by)
    # If a multiple of 8 channels was preferred, the next multiple is too large.
    following = (cls.grows_by * (steps + step) for step in (1, ALIGNED))
    fitted, one_more, eight_more = (
        parameters(arch, model, **{cls.grows: x}) for x in (model[cls.grows], *following)
    )
    assert fitted <= budget < eight_more
    assert one_more > budget or (steps % ALIGNED == 0 and fitted >= 0.8 * budget)
    assert config["budget"]["limit"] == budget


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [
        # 80 channels (4,289,754) instead of 86 (4,955,622)
        (["--arch=wide_resnet"], {"depth": 16, "widen_factor": 5.0}),
        # 64 channels (4,298,970) instead of 69 (4,995,315)
        (["--arch=wide_resnet", "--model.depth=22"], {"depth": 22, "widen_factor": 4.0}),
        # 47 channels: 40 would be 3,501,594 instead of 4,831,181
        (["--arch=wide_resnet", "--model.depth", "40"], {"depth": 40, "widen_factor": 47 / 16}),
        (["--arch=sam_resnet"], {"base_width": 64}),
        (["--arch=sam_resnet", "--model.blocks=[2,2,2]"], {"base_width": 80}),
        # the paper's width; 24 would have three fifths of its parameters
        (["--arch=enhanced_efficient_resnet"], {"base_width": 31}),
    ],
)
@pytest.mark.parametrize("budget", ["5000000", "5e6"])
def test_the_largest_networks_within_five_million_parameters(flags, chosen, budget):
    model = resolve_config([*flags, "--fit_budget", budget])["model"]
    assert {name: model[name] for name in chosen} == chosen


@pytest.mark.parametrize("power", [1, 2, 3, 5])
@pytest.mark.parametrize("budget", [5, 6, 1_000, 12_345, 10**9])
def test_the_search_agrees_with_trying_all(power, budget):
    def count(steps):
        return 5 * steps**power

    steps = 0
    while power > 1 and count(steps + 1) <= budget:
        steps += 1
    steps = steps if power > 1 else budget // 5
    assert largest_fit(count, budget) == Fit(steps, count(steps))


def test_the_search_counts_a_few_networks_only():
    asked = []

    def count(steps):
        asked.append(steps)
        return 1_100 * steps**2 + 350 * steps + 10

    assert largest_fit(count, 5_000_000) == Fit(67, count(67))
    assert len(asked) < 8


def test_multiples_of_eight_are_preferred_if_little_is_lost():
    count = {64: 85}.__getitem__
    assert preferred_fit(Fit(71, 100), aligned_fit(count, Fit(71, 100))) == Fit(64, 85)
    assert preferred_fit(Fit(71, 101), aligned_fit(count, Fit(71, 101))) == Fit(71, 101)
    assert aligned_fit(count, Fit(7, 9)) is None
    assert preferred_fit(Fit(7, 9), None) == Fit(7, 9)


def test_choosing_takes_less_than_a_second():
    resolve_config(["--arch=sam_resnet", "--fit_budget=5e6"])
    began = time.process_time()
    cls = EXPERIMENTS["sam_resnet"]
    assert largest_fit(partial(cls.parameters_with, arguments={}), 4_999_999)
    assert time.process_time() - began < 1


def test_the_budget_overrides_presets_and_files(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("model:\n  base_width: 4\nfit_budget: 1.0e+6\n")
    fitted = resolve_config(["--arch=sam_resnet", f"--config={config}"])
    assert fitted["model"]["base_width"] > 4
    assert fitted["budget"]["limit"] == 1_000_000


def test_the_limit_grows_only_if_larger():
    limits = [
        resolve_config(["--arch=resnet", "--fit_budget=1e5", *more])["budget"]
        for more in ([], ["--budget.limit=50000"], ["--budget.action=warn"], ["--budget=false"])
    ]
    assert limits == [
        {"limit": 100_000, "action": "refuse"},
        {"limit": 50_000, "action": "refuse"},
        {"limit": 100_000, "action": "warn"},
        False,
    ]


def test_a_fitted_run_has_the_chosen_size():
    fitted = resolve_config(["--arch=sam_resnet", "--fit_budget=5e6"])
    assert training_of(fitted) == training_of(
        resolve_config(["--arch=sam_resnet", "--model.base_width=64"])
    )


@pytest.mark.parametrize("where", ["flag", "file"])
def test_quick_leaves_the_width_to_the_budget(where, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("fit_budget: 150000\n")
    budget = {"flag": "--fit_budget=150000", "file": f"--config={config}"}[where]
    model = resolve_config(["--arch=wide_resnet", "--quick", budget])["model"]
    assert model["depth"] == EXPERIMENTS["wide_resnet"].quick["depth"]
    assert model["widen_factor"] != EXPERIMENTS["wide_resnet"].quick["widen_factor"]


def test_the_choice_is_printed_recorded_and_resumed(experiment, command):
    flags = ("--arch=sam_resnet", "--model.blocks=[1,1,1]", "--fit_budget=20000")
    run = experiment(*flags, "--trainer.max_epochs=1")
    width, count = run.record.config["model"]["base_width"], run.record.parameters
    assert (
        count <= 20_000 < parameters("sam_resnet", run.record.config["model"], base_width=width + 1)
    )
    assert yaml.safe_load((run.folder / "config.yaml").read_text()) == run.record.config
    operations = operations_per_image(run.cli.model)
    assert (
        f"A budget of 20,000 parameters: base_width {width} has {count:,} ({count / 20_000:.1%}) "
        f"and {operations:,} operations per image"
    ) in run.output

    (run.folder / "result.json").unlink()
    again = [f"--output={run.folder.parent}", f"--name={run.folder.name}", "--ckpt_path=last"]
    resumed = command(["--arch=sam_resnet", *again, "--trainer.max_epochs=2", "--allow-changes"])
    assert resumed.record.parameters == count
    assert resumed.record.epochs == 2


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["--fit_budget=10"],
         "--fit_budget: no sam_resnet fits 10 parameters: with base_width 1 it has [0-9,]+"),
        (["--fit_budget=5e6", "--model.base_width", "8"],
         DECIDES),
        (["--model.base_width=8", "--fit_budget", "5000000"],
         DECIDES),
        (["--fit_budget=0"], "--fit_budget: .* whole number of parameters from 1 .* got 0"),
        (["--fit_budget=-5e6"], "--fit_budget: .* whole number of parameters from 1 .* got -5e"),
        (["--fit_budget=99.5"], "--fit_budget: .* whole number of parameters from 1 .* got 99.5"),
        (["--fit_budget=1e30"], "--fit_budget: .* whole number of parameters from 1 .* got 1e"),
        (["--fit_budget=5M"], ".*fit_budget.*5M"),
        (["--fit_budget=5e6", "--model.se_reduction=0"], "--model.se_reduction: se_reduction "),
    ],
)  # fmt: skip
def test_a_mistake_gives_one_line(refusal, flags, answer):
    assert re.match(answer, refusal("--arch=sam_resnet", *flags))


def test_the_refused_size_is_free_without_the_budget(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("fit_budget: 1.0e+6\n")
    flags = [f"--config={config}", "--model.base_width=8", "--fit_budget=null"]
    assert resolve_config(["--arch=sam_resnet", *flags])["model"]["base_width"] == 8
