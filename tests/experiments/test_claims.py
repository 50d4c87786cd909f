from dataclasses import replace

import numpy as np
import pytest

from experiments.claims.claims import claim_rows, operations_of
from experiments.claims.matching import Results, load_results
from experiments.claims.measures import Measure
from experiments.claims.suites import SHORTENED, load_suite, load_suites
from experiments.inference.strategies import LADDER
from experiments.records.record import (
    Calibration,
    Evaluation,
    Score,
    StrategyResult,
    StrategyScore,
    write_record,
)
from experiments.reporting.claims_page import PAGE, render, write_claims
from experiments.training.configuration import resolve_config

SUITE = """\
title: A table
paper: A paper
short: {trainer.max_epochs: 30}
short_cpu: {trainer.max_epochs: 20, model.base_width: 32}
mini: {model.base_width: 16}
rows:
  base: {title: Baseline, arch: resnet}
  full: {title: SAMResNet, arch: sam_resnet}
  twin: {title: SAMResNet once more, arch: sam_resnet}
claims:
  - {id: base, text: t, source: s, metric: test accuracy, measure: base, claimed: 92.0}
  - {id: kaggle, text: t, source: s, metric: test accuracy, measure: base, claimed: 92.0,
     not_comparable: another test set}
  - {id: gain, text: t, source: s, metric: test accuracy, measure: full - base, claimed: 1.0,
     headline: true}
  - {id: ema, text: t, source: s, metric: val accuracy, measure: "twin[ema] - full", claimed: 0.5}
  - {id: flip, text: t, source: s, metric: test accuracy, measure: "full[flip] - full",
     claimed: 0.5}
  - {id: share, text: t, source: s, metric: test accuracy,
     measure: "100 * (full[flip] - full) / (full[tta] - full)", claimed: 50}
  - {id: spread, text: t, source: s, metric: sd of val accuracy, measure: full / base,
     claimed: "> 1"}
  - {id: train, text: t, source: s, metric: train accuracy, measure: base, claimed: 99.8}
  - {id: epoch, text: t, source: s, metric: best epoch, measure: base, claimed: 497}
  - {id: hot, text: t, source: s, metric: fitted temperature, measure: "full[tta]", claimed: "> 1"}
  - {id: break, text: t, source: s, metric: first break, measure: full, claimed: 20, tolerance: 5}
  - {id: break2, text: t, source: s, metric: second break, measure: full, claimed: 80,
     tolerance: 5}
  - {id: gap, text: t, source: s, metric: generalisation gap, measure: full, claimed: "< 2"}
  - {id: calm, text: t, source: s, metric: late fluctuation, measure: base - full, claimed: "> 0"}
  - {id: seconds, text: t, source: s, metric: training seconds,
     measure: 100 * (full - base) / base, claimed: "< 5"}
  - {id: views, text: t, source: s, metric: best number of views, measure: full,
     claimed: 4 to 6}
  - {id: operations, text: t, source: s, metric: operations,
     measure: 100 * (full - base) / base, claimed: "< 5"}
  - {id: count, text: t, source: s, metric: parameters, measure: full - base, claimed: 36448}
"""

# Both sides vary much between seeds, but their difference does not.
RAW, AVERAGED = (0.90, 0.92, 0.94), (0.905, 0.9251, 0.9449)


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text(SUITE)
    return load_suite(path)


def scored(raw, ema=None, epoch=6):
    def score(accuracy):
        return Score(accuracy, 0.3, 0.0, 10_000, "best.ckpt", epoch)

    of_split = {"raw": score(raw)} | ({"ema": score(ema)} if ema else {})
    return {"val": of_split, "test": of_split}


@pytest.fixture
def runs(record_of, suite):
    """Records of a row with these accuracies, one per seed."""

    def runs(row, raw, ema=(), scale="full", **fields):
        emas = ema or [None] * len(raw)
        return [
            record_of(
                suite.rows[row].flags(scale, seed),
                name=f"{row}-{seed}",
                scores=scored(*accuracies),
                **fields,
            )
            for seed, accuracies in enumerate(zip(raw, emas, strict=True))
        ]

    return runs


@pytest.fixture
def assess(suite):
    """The row of one claim, by default at full scale."""

    def assess(claim, records=(), evaluations=(), scale="full"):
        rows = claim_rows(Results(tuple(records), tuple(evaluations)), [suite])
        found = [row for row in rows if row.claim.id == claim and row.scale == scale]
        return found[0] if found else None

    return assess


def evaluation_of(record, temperature=1.5, **accuracies):
    """An evaluation of a run with these accuracies by strategy."""
    none = Calibration(0.0, 0.0, 0.0, 0.0)
    accuracies["plain"] = record.scores["test"]["raw"].accuracy
    results = {
        name: StrategyResult(
            {"temperature": 1.2 if name == "tta" else 1.0},
            temperature,
            1.0,
            {"test": StrategyScore(accuracy, *gain, 10_000, none, None)},
        )
        for name, accuracy in accuracies.items()
        for gain in [(0.0, 0.0, 0.0) if name == "plain" else (0.004, 0.001, 0.007)]
    }
    return Evaluation(
        runs=[record.name],
        command="",
        source="cifar10",
        commit="",
        dirty=False,
        versions={},
        device="cpu",
        precision="32-true",
        finished="2026-01-01T00:00:00+00:00",
        baseline="plain",
        chosen=None,
        strategies=results,
    )


def test_without_records_a_claim_is_not_yet_measured(assess):
    row = assess("gain")
    assert (row.verdict, row.measured, row.n, row.claimed) == ("not yet measured", "", "", "+1.0")
    # The claim is 7 times the usual deviation of 0.14 points: the minimum of two seeds is enough.
    assert row.seeds == "2 a side"
    assert row.command == "python experiments/reproduce.py table --rows full,base"
    assert assess("gain", scale="mini") is None


def test_one_run_has_no_verdict(assess, runs):
    row = assess("base", runs("base", [0.92]))
    assert (row.verdict, row.measured, row.n) == ("undecided", "92.00", "1")


def test_a_mean_has_its_t_interval(assess, runs):
    row = assess("base", runs("base", [0.91, 0.92, 0.93]))
    # 4.30265 x 1 / sqrt(3)
    assert (row.verdict, row.measured, row.n) == ("reproduced", "92.00 ± 2.48", "3")
    assert assess("base", runs("base", [0.951, 0.952, 0.953])).verdict == "contradicted"


def test_two_trainings_are_compared_by_welch_even_with_different_seeds(assess, runs):
    base, full = runs("base", [0.91, 0.92, 0.93]), runs("full", [0.92, 0.93, 0.94])
    row = assess("gain", base + full)
    # 2.77645 x sqrt(2 / 3). Paired by seed, the interval would have no width.
    assert (row.verdict, row.measured, row.n) == ("undecided", "+1.00 ± 2.27", "3 + 3")
    # The difference is one standard deviation.
    assert row.seeds == "17 a side"
    assert assess("gain", base[:2] + full[2:]).n == "1 + 2"
    assert assess("gain", base).verdict == "not yet measured"


@pytest.mark.parametrize(
    ("full", "verdict"),
    [
        ([0.930, 0.931, 0.932], "reproduced"),
        ([0.960, 0.961, 0.962], "direction only"),
        ([0.921, 0.920, 0.919], "contradicted"),
        ([0.880, 0.881, 0.882], "contradicted"),
    ],
)
def test_a_difference_is_judged_by_the_rule(assess, runs, full, verdict):
    records = runs("base", [0.920, 0.921, 0.922]) + runs("full", full)
    assert assess("gain", records).verdict == verdict


def test_two_ways_to_predict_with_the_same_runs_are_paired(assess, runs):
    row = assess("ema", runs("full", RAW, AVERAGED))
    assert (row.verdict, row.measured, row.n) == ("reproduced", "+0.50 ± 0.02", "3")
    assert row.seeds == "2 pairs"


def test_a_strategy_is_read_from_the_evaluation_of_each_run(assess, runs):
    records = runs("full", RAW)
    found = [
        evaluation_of(record, flip=raw + 0.005, tta=raw + 0.01)
        for record, raw in zip(records, RAW, strict=True)
    ]
    assert assess("flip", records, found).measured == "+0.50 ± 0.00"
    assert assess("share", records, found).measured == "50.00 ± 0.00"
    assert assess("hot", records, found).measured == "1.80 ± 0.00"
    assert assess("flip", records).verdict == "not yet measured"


def test_an_evaluation_of_another_run_with_the_same_name_is_ignored(assess, runs):
    (record,) = runs("full", [0.9])
    (other,) = runs("full", [0.95])
    assert assess("flip", [record], [evaluation_of(other, flip=0.96)]).estimate is None


def test_evaluations_of_exports_with_one_set_of_weights_match_by_these_weights(runs):
    (record,) = runs("full", [0.9], [0.95])
    whole = evaluation_of(record, ema=0.95)
    results = {"ema": whole.strategies["ema"]}
    alone = replace(whole, baseline="ema", strategies=results)
    of_ema, of_raw = (
        replace(record, scores={"test": {name: record.scores["test"][name]}})
        for name in ("ema", "raw")
    )
    assert Results((of_ema,), (alone,)).evaluation_of(of_ema) is alone
    assert Results((record,), (alone,)).evaluation_of(record) is alone
    assert Results((of_raw,), (alone,)).evaluation_of(of_raw) is None
    assert Results((of_ema,), (whole,)).evaluation_of(of_ema) is None


def test_a_single_runs_interval_over_images_is_shown_and_decides_nothing(assess, runs):
    (record,) = runs("full", [0.9])
    row = assess("flip", [record], [evaluation_of(record, flip=0.904)])
    assert row.measured == "+0.40 [+0.10, +0.70] over images"
    assert row.verdict == "undecided"


def test_a_share_of_no_gain_is_measured_and_undecided(assess, runs):
    records = runs("full", [0.9, 0.91])
    found = [evaluation_of(x, flip=0.9, tta=x.scores["test"]["raw"].accuracy) for x in records]
    row = assess("share", records, found)
    assert (row.verdict, row.measured, row.n) == ("undecided", "not defined", "2")


def test_half_of_a_gain_is_between_two_fifths_and_three_fifths_of_it(runs):
    suite = load_suites()["sam_resnet_figure1"]
    records = [replace(x, config=y) for x, y in zip(runs("full", RAW), configs(suite), strict=True)]
    for share, verdicts in (
        (0.5, ["reproduced", "reproduced"]),
        (0.2, ["contradicted", "reproduced"]),
        (0.9, ["reproduced", "contradicted"]),
    ):
        found = [
            evaluation_of(x, flip=raw + share * 0.003, tta=raw + 0.003)
            for x, raw in zip(records, RAW, strict=True)
        ]
        rows = claim_rows(Results(tuple(records), tuple(found)), [suite])
        of_share = [x.verdict for x in rows if x.claim.id.startswith("flip_share")]
        assert of_share == verdicts


def configs(suite):
    row = suite.rows["final"]
    return [resolve_config(row.flags("full", seed)) for seed in range(3)]


def test_the_spread_between_seeds_is_compared_by_the_f_test(assess, runs):
    base, full = runs("base", [0.91, 0.92, 0.93]), runs("full", [0.90, 0.92, 0.94])
    row = assess("spread", base + full)
    assert (row.verdict, row.measured) == ("undecided", "2.00 [0.32, 12.49]")
    row = assess("spread", base + full[:1])
    assert (row.verdict, row.measured, row.n) == ("undecided", "not defined", "1 + 3")
    assert assess("spread", base).verdict == "not yet measured"


def test_training_accuracy_and_the_best_epoch_are_the_records(assess, runs):
    records = runs("base", [0.9, 0.9], train_accuracy=0.998)
    assert assess("train", records).measured == "99.80 ± 0.00"
    assert assess("train", runs("base", [0.9])).verdict == "not yet measured"
    assert assess("epoch", records).measured == "6.00 ± 0.00"


def three_lines(first, second):
    """A validation curve of 40 epochs with two breaks."""
    shares = np.arange(1, 41) / 40
    return list(np.interp(shares, [0, first, second, 1], [0.3, 0.7, 0.8, 0.95]))


@pytest.mark.parametrize("scale", ["full", *SHORTENED])
def test_phases_are_judged_by_the_breaks_of_the_curve(assess, runs, scale):
    def verdict(*curves):
        records = runs("full", [0.9] * len(curves), scale=scale)
        found = [replace(x, val_curve=y) for x, y in zip(records, curves, strict=True)]
        row = assess("break", found, scale=scale)
        return row.verdict, row.measured

    three = three_lines(0.2, 0.8)
    assert verdict(three, three) == ("reproduced", "20.00 ± 0.00")
    assert verdict(*[three_lines(0.4, 0.8)] * 2) == ("contradicted", "40.00 ± 0.00")
    found = [replace(x, val_curve=three) for x in runs("full", [0.9] * 2, scale=scale)]
    row = assess("break2", found, scale=scale)
    assert (row.verdict, row.measured) == ("reproduced", "80.00 ± 0.00")
    # A curve without three phases, or with too few epochs.
    assert verdict(three, [0.9] * 40) == ("undecided", "not defined")
    assert verdict(three, three[::5]) == ("undecided", "not defined")
    assert verdict(three) == ("undecided", "20.00")


def test_a_record_without_a_curve_is_not_a_measurement(assess, runs):
    old = runs("full", [0.9, 0.91])
    for claim in ("break", "gap", "calm"):
        assert assess(claim, old + runs("base", [0.9, 0.91])).verdict == "not yet measured"
    # One side of a gap is not enough.
    assert assess("gap", [replace(x, val_curve=[0.9]) for x in old]).verdict == "not yet measured"
    assert assess("gap", [replace(x, clean_train_accuracy=1.0) for x in old]).estimate is None


@pytest.mark.parametrize(
    ("clean", "verdict", "measured"),
    [
        ((0.955, 0.956), "reproduced", "0.55 ± 0.64"),
        ((0.999, 0.999), "contradicted", "4.90 ± 0.00"),
        ((0.950, 0.975), "undecided", "1.25 ± 15.88"),
    ],
)
def test_the_gap_is_between_the_last_epochs_accuracies(assess, runs, clean, verdict, measured):
    records = [
        replace(x, clean_train_accuracy=y, val_curve=[0.97, 0.90, 0.95])
        for x, y in zip(runs("full", [0.97, 0.97]), clean, strict=True)
    ]
    row = assess("gap", records)
    assert (row.verdict, row.measured) == (verdict, measured)


def test_the_late_fluctuation_of_two_schedules_is_compared(assess, runs):
    def bumpy(height):
        return [0.5] * 36 + [0.9 + height, 0.9 - height, 0.9 - height, 0.9 + height]

    def verdict(ours, theirs):
        records = [
            replace(x, val_curve=bumpy(y))
            for row, heights in (("base", ours), ("full", theirs))
            for x, y in zip(runs(row, [0.9] * 2), heights, strict=True)
        ]
        row = assess("calm", records)
        return row.verdict, row.measured.split()[0]

    # The deviation of a bumpy curve from its line is sqrt(2) times the height of its bumps.
    assert verdict((0.010, 0.011), (0.001, 0.002)) == ("reproduced", "1.27")
    assert verdict((0.001, 0.002), (0.010, 0.011)) == ("contradicted", "-1.27")
    assert verdict((0.001, 0.011), (0.002, 0.010))[0] == "undecided"


def test_an_accuracy_belongs_to_its_split(assess, runs):
    score = scored(0.9)["val"]
    records = [replace(x, scores={"test": scored(0.8)["test"]}) for x in runs("base", [0.9] * 2)]
    assert assess("base", records).measured == "80.00 ± 0.00"
    assert assess("spread", records + runs("full", [0.9] * 2)).verdict == "not yet measured"
    records = [replace(x, scores=x.scores | {"val": score}) for x in records]
    assert assess("base", records).measured == "80.00 ± 0.00"


def test_seconds_are_compared_on_one_device(assess, runs):
    def row(seconds, device="gpu"):
        full = runs("full", [0.9] * 2, device=device)
        return assess(
            "seconds",
            runs("base", [0.9] * 2, training_seconds=100.0, device="gpu")
            + [replace(x, training_seconds=y) for x, y in zip(full, seconds, strict=True)],
        )

    assert (row((102, 102)).verdict, row((102, 102)).measured) == ("reproduced", "2.00 ± 0.00")
    assert row((125, 126)).verdict == "contradicted"
    assert row((101, 109)).verdict == "undecided"
    assert (row((102, 102), "cpu").verdict, row((102, 102), "cpu").measured) == (
        "undecided",
        "not defined",
    )


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((0.5, 0.8, 1.0, 1.0, 1.0), "reproduced"),
        ((1.0, 1.0, 1.0, 1.0, 1.0), "contradicted"),
        ((0.0, 0.0, 0.0, 0.0, 0.0), "undecided"),
    ],
)
def test_the_best_number_of_views_is_of_accuracy_and_seconds(assess, runs, gains, verdict):
    records = runs("full", [0.9, 0.9])
    of_views = dict(zip(list(LADDER.values())[1:], gains, strict=True))
    found = []
    for record in records:
        evaluation = evaluation_of(record, **{x: 0.9 + 0.01 * y for x, y in of_views.items()})
        timed = {
            name: replace(evaluation.strategies[name], seconds=float(views))
            for views, name in LADDER.items()
        }
        found.append(replace(evaluation, strategies=timed))
    assert assess("views", records, found).verdict == verdict
    old = [replace(x, strategies={"plain": x.strategies["plain"]}) for x in found]
    assert assess("views", records, old).verdict == "not yet measured"


def test_operations_are_counted(assess):
    row = assess("operations", scale="counted")
    assert (row.verdict, row.measured) == ("reproduced", "0.004")


def test_the_page_says_the_cost_of_full_length_only_with_shorter_trainings(suite, runs):
    def page(*records):
        return render(Results(records), {suite.name: suite})

    short = runs("base", RAW, scale="short") + runs("full", RAW, scale="short")
    assert "H100" not in page(*runs("base", RAW), *runs("full", RAW))
    assert "`resnet`, 200 epochs: not measured" in page(*short)
    assert "H100" not in render(Results(short), {suite.name: replace(suite, paper=None)})
    # 351 steps per epoch, 0.01 seconds per step.
    gpu = [
        replace(
            x,
            device="NVIDIA H100 80GB HBM3",
            operations_per_image=operations_of(x.config),
            steps=100,
            training_seconds=1.0,
        )
        for x in short[:1]
    ]
    said = page(*short[1:], *gpu)
    assert "`resnet`, 200 epochs: 12 minutes" in said
    assert "`sam_resnet`, 200 epochs: not measured" in said


def test_a_claim_that_is_not_comparable_is_measured_and_not_judged(assess, runs):
    row = assess("kaggle", runs("base", [0.91, 0.92, 0.93]))
    assert (row.verdict, row.measured) == ("not comparable", "92.00 ± 2.48")
    assert row.note == "another test set"


def test_runs_of_several_precisions_or_a_changed_checkout_are_pooled_with_a_note(assess, runs):
    base, full = runs("base", [0.91, 0.92, 0.93]), runs("full", [0.92, 0.93])
    assert assess("gain", base + full).note is None
    base[0] = replace(base[0], precision="32-true", dirty=True)
    full[1] = replace(full[1], dirty=True)
    row = assess("gain", base + full)
    assert row.n == "2 + 3"
    assert row.note == ("precisions: 32-true, bf16-mixed; 2 of 5 runs from a changed checkout")
    note = assess("kaggle", base).note
    assert note.startswith("another test set; precisions: 32-true, bf16-mixed; 1 of 3 runs")
    # Two rows are the same training, so its runs are counted once.
    assert assess("ema", runs("full", RAW, AVERAGED, dirty=True)).note.startswith("3 of 3 runs")
    assert assess("gain", base).note is None


@pytest.mark.parametrize("scale", SHORTENED)
@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.01, "reproduced"), (0.02, "direction only"), (-0.01, "contradicted")]
)
def test_in_fewer_epochs_differences_are_judged_and_values_are_not(
    assess, runs, gain, verdict, scale
):
    records = runs("base", [0.700, 0.701], scale=scale)
    records += runs("full", [0.700 + gain, 0.701 + gain], scale=scale)
    value, found = (assess(x, records, scale=scale) for x in ("base", "gain"))
    assert (value.verdict, value.measured) == ("not comparable", "70.05 ± 0.64")
    assert value.note == "the paper's value is for its full length"
    assert (found.verdict, found.measured) == (verdict, f"{100 * gain:+.2f} ± 0.30")
    assert found.command.endswith(f"--rows full,base --scale {scale}")
    assert {assess(x, records).verdict for x in ("base", "gain")} == {"not yet measured"}


def test_mini_scale_has_no_verdict(assess, runs):
    records = runs("base", [0.700, 0.701], scale="mini")
    assert assess("base", records, scale="mini") is None
    assert assess("base", records).verdict == "not yet measured"


def test_a_suite_without_short_scale_has_one_row_for_each_claim(tmp_path, suite, runs):
    path = tmp_path / "full.yaml"
    path.write_text("".join(x for x in SUITE.splitlines(True) if not x.startswith("short")))
    full = load_suite(path)
    rows = claim_rows(Results(tuple(runs("base", RAW))), [full])
    assert len(rows) == len(full.claims)


def test_a_count_needs_no_record(assess):
    row = assess("count", scale="counted")
    assert (row.verdict, row.measured, row.claimed) == ("reproduced", "36,448", "36,448")


def test_the_page_states_scale_interval_and_verdict(suite, runs):
    records = runs("base", [0.70, 0.72], scale="short") + runs("full", RAW, AVERAGED)
    records += runs("full", [0.711, 0.731], scale="short")
    page = render(Results(tuple(records)), {suite.name: suite})
    lines = page.splitlines()
    # The main claims come first, at the longest scale with records.
    assert lines[6].startswith("| t (s) | +1.0 | +1.10 ± 6.08 | short | **undecided** |")
    (line,) = [x for x in lines if "not comparable** (short)" in x and "92.0 |" in x][:1]
    assert "| short | 71.00 ± 12.71 | 2 |" in line
    (measured,) = [x for x in lines if x.startswith("| `full`: SAMResNet | full")]
    assert "92.00 ± 4.97 / 92.50 ± 4.96" in measured
    assert measured.endswith("| full-0, full-1, full-2 |")


def test_the_page_prefers_full_width_among_the_shorter_trainings(suite, runs):
    def headline(*scales):
        records = [x for y in scales for row in ("base", "full") for x in runs(row, RAW, scale=y)]
        return render(Results(tuple(records)), {suite.name: suite}).splitlines()[6]

    assert "| short_cpu | **undecided** |" in headline("short_cpu")
    assert "| short | **undecided** |" in headline("short_cpu", "short")


def test_the_page_omits_full_scale_if_only_fewer_epochs_judge_a_claim(suite, runs):
    def scales(claimed, *scales):
        records = [x for y in scales for row in ("base", "full") for x in runs(row, RAW, scale=y)]
        lines = render(Results(tuple(records)), {suite.name: suite}).splitlines()
        rows = [x.split(" | ") for x in lines if x.startswith("| t") and " | s | " in x]
        return [row[3] for row in rows if row[2] == claimed]

    assert scales("+1.0") == ["full"]
    assert scales("+1.0", "short_cpu") == ["short_cpu"]
    assert scales("+1.0", "short_cpu", "full") == ["full", "short_cpu"]
    # A value that fewer epochs cannot judge keeps its row.
    assert scales("92.0", "short_cpu") == ["full", "short_cpu"] * 2


def test_the_page_is_written_from_the_records_in_a_folder(tmp_path, record_of):
    row = load_suites()["sam_resnet_table1"].rows["baseline"]
    write_record(record_of(row.flags("full", 0)), tmp_path / "a.json")
    page = write_claims(tmp_path)
    assert page == tmp_path / "CLAIMS.md"
    assert "| `baseline`: Baseline ResNet | full | 1 | 90.00 | 90.00 | a |" in page.read_text()


@pytest.mark.parametrize(
    ("claim", "claimed", "measured", "verdict"),
    [
        ("sam_resnet", "5.02M", "4,733,610", "contradicted"),
        ("resnet", "4.96M", "4,697,162", "contradicted"),
        ("se_share", "1.2", "0.78", "contradicted"),
        ("enhanced", "4,913,705", "4,913,705", "reproduced"),
        ("pointwise", "4,913,705", "4,904,033", "contradicted"),
        ("budget_used", "94.27", "98.27", "contradicted"),
        ("width_40", "5,000,000 to 5,500,000", "8,178,434", "contradicted"),
        ("wrn_16_4", "5.8M", "2,748,890", "contradicted"),
        ("wrn_28_4", "5.8M", "5,849,050", "reproduced"),
        ("wrn_16_3_budget", "< 5,000,000", "1,549,530", "reproduced"),
        ("wrn_28_3_budget", "< 5,000,000", "3,294,042", "reproduced"),
        ("bare", "4,807,025", "4,807,025", "reproduced"),
        ("attention", "35,008", "35,008", "reproduced"),
        ("extra_conv", "71,672", "71,672", "reproduced"),
        ("extra_conv_pointwise", "71,672", "62,000", "contradicted"),
    ],
)
def test_a_claim_of_numbers_alone_is_counted(claim, claimed, measured, verdict):
    suites = [load_suites()[name] for name in ("arithmetic", "hand_counts")]
    (only,) = [
        replace(suite, claims=(x,)) for suite in suites for x in suite.claims if x.id == claim
    ]
    (row,) = claim_rows(Results(()), [only])
    assert (row.claimed, row.measured, row.verdict) == (claimed, measured, verdict)


def test_the_claims_page_equals_a_new_rendering():
    assert PAGE.read_text() == render(load_results()), "python experiments/reproduce.py --table"


@pytest.mark.parametrize(
    ("metric", "measure", "evaluated", "short"),
    [
        ("test accuracy", "base", False, False),
        ("test accuracy", "base[swa]", False, False),
        ("test accuracy", "base[tta]", True, False),
        ("best epoch", "base[ema]", False, False),
        ("first break", "base", False, True),
        ("fitted temperature", "base", True, False),
        ("best number of views", "base", True, True),
    ],
)
def test_a_claim_knows_if_it_needs_an_evaluation_or_full_length(
    suite, metric, measure, evaluated, short
):
    claim = replace(suite.claims[0], metric=metric, measure=Measure(measure))
    assert claim.needs_evaluation("base") is evaluated
    assert {claim.judged_at(scale) for scale in SHORTENED} == {short}
