import math
import re

import pytest

from experiments.claims.claims import parameters_of
from experiments.claims.matching import config_of_row, training_of, training_of_row
from experiments.claims.measures import Measure, Term
from experiments.claims.suites import SUITES, load_suite, load_suites
from experiments.console import UserError
from experiments.training.configuration import resolve_config

ALL = load_suites()
ROWS = [(suite, row) for suite in ALL.values() for row in suite.rows.values()]

SMALL = """\
title: A table
paper: A paper
mini: {model.base_width: 16, trainer.max_epochs: 6}
rows:
  base:
    title: Baseline
    arch: resnet
    overrides: {data.cutout: 8, model.base_width: 32}
    mini: {trainer.max_epochs: 2}
  averaged:
    title: With EMA
    arch: sam_resnet
claims:
  - id: gain
    text: EMA helps
    source: Table 1
    metric: test accuracy
    measure: averaged[ema] - base
    claimed: 0.50
"""


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "table.yaml"
        path.write_text(text)
        return load_suite(path)

    return load


@pytest.mark.parametrize(("suite", "row"), ROWS, ids=[f"{s.name}-{r.name}" for s, r in ROWS])
@pytest.mark.parametrize("scale", ["full", "mini"])
def test_every_row_is_a_command_line_with_its_suites_settings(suite, row, scale):
    config = config_of_row(row, scale)
    expected = row.overrides | (row.mini if scale == "mini" else {})
    for flag, value in expected.items():
        group, _, key = flag.partition(".")
        assert (config[group][key] if key else config[group]) == value, flag
    assert config["arch"] == row.arch


@pytest.mark.parametrize(("suite", "row"), ROWS, ids=[f"{s.name}-{r.name}" for s, r in ROWS])
def test_a_trained_row_is_within_the_budget_or_only_warned(suite, row):
    if row in suite.trained_rows and parameters_of(config_of_row(row, "full")) > 5_000_000:
        assert config_of_row(row, "full")["budget"]["action"] == "warn"


ATTENTION = (
    "--arch enhanced_efficient_resnet --model.base_width 8 --trainer.max_epochs 5 "
    "--trainer.precision bf16-mixed --ema.decay 0.99 --seed 1 --wandb disabled "
    "--trainer.enable_progress_bar false --name a"
)
TABLE_1 = (
    "--model.base_width 16 --trainer.max_epochs 6 --trainer.precision bf16-mixed --seed 1 "
    "--wandb disabled --trainer.enable_progress_bar false --name a"
)


@pytest.mark.parametrize(
    ("suite", "row", "flags"),
    [
        ("sam_resnet_table1", "baseline", f"--arch resnet {TABLE_1}"),
        (
            "sam_resnet_table1",
            "se",
            f"--arch sam_resnet {TABLE_1} --data.mixup_alpha 0 --ema false",
        ),
        ("sam_resnet_table1", "mixup", f"--arch sam_resnet {TABLE_1} --ema.decay 0.99"),
        ("sam_resnet_table1", "ema", f"--arch sam_resnet {TABLE_1} --ema.decay 0.99"),
        ("enhanced_efficient_resnet_attention", "full", ATTENTION),
        (
            "enhanced_efficient_resnet_attention",
            "neither",
            f"{ATTENTION} --model.channel_attention false --model.spatial_attention false",
        ),
    ],
)
def test_at_mini_scale_a_row_has_the_settings_of_its_training(suite, row, flags):
    trained = training_of(resolve_config(flags.split()), "cifar10")
    assert training_of_row(ALL[suite].rows[row], "mini") == trained


def test_rows_that_differ_only_in_prediction_are_one_training():
    table, figure = ALL["sam_resnet_table1"].rows, ALL["sam_resnet_figure1"].rows
    same = {training_of_row(x, "mini") for x in (table["mixup"], table["ema"], figure["final"])}
    assert len(same) == 1
    assert len({training_of_row(row, "mini") for row in table.values()}) == 3


def test_suites_of_counts_train_nothing_and_others_every_row():
    for suite in ALL.values():
        counts = suite.name in ("arithmetic", "hand_counts")
        assert suite.trained_rows == ([] if counts else list(suite.rows.values())), suite.name


def test_only_strategies_beyond_single_views_need_an_evaluation():
    assert ALL["sam_resnet_figure1"].needs_evaluation("final")
    assert not any(ALL["sam_resnet_table1"].needs_evaluation(row) for row in ("ema", "se"))


def test_a_rows_mini_replaces_the_suites_and_both_replace_its_overrides(load):
    row = load(SMALL).rows["base"]
    assert row.flags("full", 3) == [
        "--arch=resnet",
        "--data.cutout=8",
        "--model.base_width=32",
        "--seed=3",
    ]
    assert row.flags("mini", 0) == [
        "--arch=resnet",
        "--data.cutout=8",
        "--model.base_width=16",
        "--trainer.max_epochs=2",
        "--seed=0",
    ]


@pytest.mark.parametrize(
    ("value", "flag"),
    [("false", "false"), ("null", "null"), ("[1, 2, 3]", "[1, 2, 3]"), ("5.0e-4", "0.0005")],
)
def test_a_value_is_written_as_run_py_reads_it(load, value, flag):
    row = load(SMALL.replace("data.cutout: 8", f"data.x: {value}")).rows["base"]
    assert row.flags("full", 0)[1] == f"--data.x={flag}"


@pytest.mark.parametrize(
    ("claimed", "low", "high"),
    [
        ("92.70", 92.695, 92.705),
        ("-1.5", -1.55, -1.45),
        ("5.02e6", 5_015_000, 5_025_000),
        ("4913705", 4_913_704.5, 4_913_705.5),
        ('"4_913_705"', 4_913_704.5, 4_913_705.5),
        ("0.7 to 1.0", 0.7, 1.0),
        ('"> 0"', 0, math.inf),
        ('"< 4.5"', -math.inf, 4.5),
        ("50\n    tolerance: 10", 40, 60),
    ],
)
def test_a_claim_includes_all_numbers_that_round_to_it(load, claimed, low, high):
    (claim,) = load(SMALL.replace("0.50", claimed)).claims
    assert (claim.claimed.low, claim.claimed.high) == pytest.approx((low, high), rel=1e-12)


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        ("a", 6.0),
        ("a[ema+tta] - b", 1.0),
        ("100 * (a - b) / a", 50.0),
        ("a - 2.5 * b", -1.5),
        ("a[six-view+ensemble] / b", 3.0),
    ],
)
def test_a_measure_is_arithmetic(measure, value):
    values = {
        Term("a"): 6.0,
        Term("b"): 3.0,
        Term("a", "ema+tta"): 4.0,
        Term("a", "six-view+ensemble"): 9.0,
    }
    assert Measure(measure)(values) == value


@pytest.mark.parametrize(
    ("measure", "pair"),
    [
        ("a - b[ema]", ("-", Term("a"), Term("b", "ema"))),
        ("a / b", ("/", Term("a"), Term("b"))),
        ("a + b", None),
        ("a - 1", None),
        ("100 * a - b", None),
        ("a", None),
    ],
)
def test_differences_and_ratios_of_two_terms_are_recognised(measure, pair):
    assert Measure(measure).pair == pair


@pytest.mark.parametrize(
    ("old", "new", "line", "key"),
    [
        ("title: A table", "titel: A table", 1, "titel is unknown (did you mean title?)"),
        ("title: A table\n", "", 1, "title is missing"),
        ("mini: {", "mini: []\nx: {", 4, "x is unknown"),
        ("mini: {model.base_width: 16, trainer.max_epochs: 6}", "mini: 6", 3, "mini must be a map"),
        ("  base:\n", "  Base-1:\n", 5, "rows.Base-1 must match pattern"),
        ("arch: resnet", "arch: resnett", 7, "rows.base.arch must be one of"),
        ("    overrides", "    override", 8, "rows.base.override is unknown (did you mean over"),
        ("{data.cutout: 8", "{seed: 8", 8, "rows.base.overrides.seed cannot be overridden"),
        ("    title: With EMA\n", "", 10, "rows.averaged.title is missing"),
        (
            "    title: With EMA\n",
            "    title: With EMA\n    teacher: bass\n",
            12,
            "rows.averaged.teacher must be an earlier row, got bass (did you mean base?)",
        ),
        ("  averaged:\n", "  base:\n", 10, "rows.base is given twice"),
        ("{trainer.max", "{ema: false, ema.decay: 0.9, trainer.max", 5, "rows.base switches ema"),
        ("metric: test", "metric: tets", 17, "claims[0].metric must be 'test accuracy', "),
        (
            "averaged[ema]",
            "averagd",
            18,
            "claims[0].measure names averagd, which is not a row of the",
        ),
        ("averaged[ema]", "averaged[emma]", 18, "claims[0].measure names the unknown strategy emm"),
        ("averaged[ema] - base", "open('x')", 18, "claims[0].measure must be arithmetic of rows"),
        ("averaged[ema] - base", "1 -", 18, "claims[0].measure must be arithmetic of rows"),
        ("averaged[ema] - base", "92.99 - 92.90", 18, "claims[0].measure names no row"),
        ("metric: test", "metric: sd of val", 18, "claims[0].measure must be one row over anothe"),
        ("metric: test accuracy", "metric: arithmetic", 18, "claims[0].measure must be numbers al"),
        (
            "metric: test",
            "metric: train",
            18,
            "claims[0].measure names ema, which has no tr",
        ),
        (
            "0.50",
            '"> 0"\n    tolerance: 1',
            20,
            "claims[0].tolerance needs a number as the claim, got > 0",
        ),
        ("0.50", "half", 19, "claims[0].claimed must be a number"),
        ("0.50", "1.0 to 0.7", 19, "claims[0].claimed must be a range from low to high"),
        ("0.50", "1.0 to 1.0", 19, "claims[0].claimed must be a range from low to high"),
        ("0.50", ".nan", 19, "claims[0].claimed must be a number"),
        ("0.50", "[0.50]", 19, "claims[0].claimed must be a text"),
        ("    claimed: 0.50\n", "", 14, "claims[0].claimed is missing"),
        ("rows:\n", "rows:\n\t- x\n", 5, "found character '\\t' that cannot start any token"),
    ],
)
def test_a_malformed_suite_gives_one_line_with_file_line_and_key(
    load, old, new, line, key, tmp_path
):
    assert SMALL.count(old) >= 1
    with pytest.raises(UserError) as error:
        load(SMALL.replace(old, new, 1))
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{tmp_path / 'table.yaml'}, line {line}: {key}"), message


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("data.cutout: 8", "model.lrr: 8", "--model.lrr=8 (did you mean"),
        ("data.cutout: 8", "model.lr: fast", "model.lr"),
        ("data.cutout: 8", "emma: true", "--emma=true (did you mean"),
    ],
)
def test_a_flag_that_run_py_rejects_gives_its_row(load, old, new, reason, capfd):
    row = load(SMALL.replace(old, new)).rows["base"]
    with pytest.raises(UserError, match=r"line 5: rows.base is refused at full scale: ") as error:
        config_of_row(row, "full")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_suite_without_claims_is_trained(load):
    suite = load(SMALL[: SMALL.index("claims:")] + "claims: []\n")
    assert suite.trained_rows == list(suite.rows.values())


@pytest.mark.parametrize("content", ["", "- a\n", "just words\n", b"\xff\xfe\x00"])
def test_a_file_without_a_suite_gives_one_line(tmp_path, content):
    path = tmp_path / "table.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(str(path))) as error:
        load_suite(path)
    assert "\n" not in str(error.value)


def test_two_claims_of_one_id_are_refused(load):
    twice = SMALL + SMALL[SMALL.index("  - id: gain") :]
    with pytest.raises(UserError, match=r"line 20: claims\[1\] .* gain is taken"):
        load(twice)


def test_the_pages_example_is_a_suite(load):
    page = (SUITES / "README.md").read_text()
    suite = load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    assert list(suite.rows) == ["se", "ema", "student"]
    assert [claim.id for claim in suite.claims] == ["ema_gain"]


@pytest.mark.parametrize(
    "bomb",
    [
        # Nine levels of nine aliases expand to 387 million values.
        "\n".join(
            [f"a0: &a0 [{', '.join('x' * 9)}]"]
            + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
        ),
        "a: &a [*a]",
        "[" * 100_000,
        "{a: " * 100_000,
        "a\n" * 500_000,
    ],
    ids=["aliases", "recursion", "lists", "mappings", "size"],
)
def test_a_yaml_bomb_is_one_line(tmp_path, bomb):
    path = tmp_path / "table.yaml"
    path.write_text(bomb)
    with pytest.raises(UserError, match=re.escape(str(path))) as error:
        load_suite(path)
    assert len(str(error.value).splitlines()) == 1
