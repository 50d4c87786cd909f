"""The numbers in the README and the pages equal the numbers in the records."""

import json
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

from experiments.claims.claims import operations_of
from experiments.claims.matching import load_results
from experiments.claims.suites import read_suites
from experiments.records.record import read_benchmark, read_evaluation, read_record
from experiments.reproduction.halving import Rung, records_of, val_accuracy
from experiments.reproduction.training_cost import operations_of_training
from experiments.training.configuration import resolve_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = "\n".join(
    (ROOT / "docs" / f"{x}.md").read_text() for x in ("training", "results", "performance")
)
ONE_LINE = " ".join(PAGES.split())
RESULTS = ROOT / "experiments" / "results"
EVALUATIONS = sorted((RESULTS / "evaluations").glob("*.json"))
PILOTS = sorted((RESULTS / "pilots").glob("*.json"))
STEPS = ("step", "step_speed_resnet", "step_compiled")


def lines_with(text: str) -> list[str]:
    found = [line for line in PAGES.splitlines() if text in line]
    assert found, f"the pages do not say {text}"
    return found


def rows_of(benchmark: str) -> list[dict]:
    return read_benchmark(RESULTS / "benchmarks" / f"{benchmark}.json").rows


def spread(values: list[float]) -> str:
    return f"{mean(values):.2f}% (sd {stdev(values):.2f})"


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_a_row_with_several_views_has_the_chosen_strategy(path: Path) -> None:
    evaluation = read_evaluation(path)
    for line in lines_with(f"(../{path.relative_to(ROOT)})"):
        if line.startswith("|"):
            (name,) = re.findall(r"(six) views", line)
            strategy = {"six": "six-view"}[name]
            assert evaluation.chosen == strategy
            for score in evaluation.strategies[strategy].scores.values():
                assert f"{score.accuracy:.2%}" in line


#: the records of each row of the table of networks that were trained on CPUs
ROWS = {
    "champion_cpu, 45,000": ["champion_cpu"],
    "champion_cpu, 50,000": ["champion_cpu_50000", "champion_cpu_50000_s1"],
    "base_1m, 50,000": ["base_1m_50000_140"],
    "small_300k, 50,000": ["small_300k_50000"],
    "tiny_100k, 50,000": ["tiny_100k_50000", "tiny_100k_50000_s1", "tiny_100k_50000_s2"],
    "tiny_100k, 45,000": ["tiny_100k"],
    # of earlier presets, which the README does not show
    "base_1m, 50,000, 80 epochs": ["base_1m_50000"],
    "small_300k, 45,000": ["small_300k"],
}


@pytest.mark.parametrize("row", ROWS)
def test_the_networks_of_the_ladder_equal_their_records(row: str) -> None:
    (arch, images, *earlier), goals = row.split(", "), PAGES.partition("## On two CPU cores")[0]
    records = [read_record(RESULTS / f"{name}.json") for name in ROWS[row]]
    ones, sixes = [], []
    for name, record in zip(ROWS[row], records, strict=True):
        evaluation = read_evaluation(RESULTS / "evaluations" / f"{name}.json")
        ones.append(100 * record.scores["test"]["raw"].accuracy)
        sixes.append(100 * evaluation.strategies["six-view"].scores["test"].accuracy)
        (line,) = lines_with(f"(../{RESULTS.relative_to(ROOT)}/{name}.json)")
        assert f"| {record.parameters:,} | {images} | {record.epochs} |" in line
        assert f"| {record.training_seconds / 60:.0f} min |" in line
        assert f"{ones[-1]:.2f}%" in goals
        assert f"{sixes[-1]:.2f}%" in goals
    accuracies = [spread(x) if len(x) > 1 else f"{x[0]:.2f}%" for x in (ones, sixes)]
    minutes = sorted({round(record.training_seconds / 60) for record in records})
    time = " to ".join(map(str, (minutes[0], minutes[-1])[: len(minutes)]))
    size = f"{record.parameters:,} | {record.operations_per_image / 1e6:.0f}M"
    cells = f"{size} | {' | '.join(accuracies)} | {len(records)} | {time} min |"
    shown = f"| `{arch}`, {images} images | {cells}" in README
    assert shown == (not earlier and row != "small_300k, 45,000")


def test_the_minutes_on_two_idle_cores_come_from_short_runs() -> None:
    minutes = []
    for arch in ("base_1m", "small_300k"):
        short = read_record(RESULTS / "speed" / f"{arch}_4epochs.json")
        steps = read_record(ROOT / "weights" / arch / "result.json").steps
        minutes.append(f"{short.training_seconds / short.steps * steps / 60:.0f}")
        link = f"([record](../experiments/results/speed/{arch}_4epochs.json))"
        assert f"`{arch}` took {short.training_seconds:.0f} s {link}" in ONE_LINE
    assert f"their whole trainings take {' and '.join(minutes)} minutes" in ONE_LINE


def test_the_gain_from_a_teacher_equals_its_records() -> None:
    accuracies = {
        row: [
            100 * read_record(path).scores["test"]["raw"].accuracy
            for path in sorted((RESULTS / "claims").glob(f"distillation-{row}-short-*.json"))
        ]
        for row in ("taught", "alone")
    }
    with_teacher, without = (mean(accuracies[row]) for row in ("taught", "alone"))
    assert f"{with_teacher:.2f}% with the teacher and {without:.2f}% without" in ONE_LINE
    assert ONE_LINE.count(f"+{with_teacher - without:.2f} ± ") == 2


def test_the_readme_states_the_operations_of_its_networks() -> None:
    rows = re.findall(r"^\| `(\w+)`, .*? \| [\d,]+ \| (\d+)M \|", README, re.MULTILINE)
    assert len(rows) > 5
    for arch, quoted in rows:
        assert quoted == f"{operations_of(resolve_config([f'--arch={arch}'])) / 1e6:.0f}"


def test_the_folder_of_pictures_equals_its_record() -> None:
    record = read_record(RESULTS / "pictures" / "seven_classes.json")
    assert record.images is not None
    assert len(record.images.classes) == 7
    assert record.train_images == 4_500
    score, page = record.scores["test"]["raw"], (ROOT / "docs" / "data.md").read_text()
    quoted = f"{score.accuracy:.2%} on {score.images:,} test pictures in"
    assert f"{quoted} {record.training_seconds:.0f} seconds" in page


@pytest.mark.parametrize("stem", ["speed_resnet_h100", "champion_cpu_h100", "champion_cpu_200"])
def test_the_runs_on_a_gpu_equal_their_records(stem: str) -> None:
    records = [read_record(path) for path in sorted((RESULTS / "h100").glob(f"{stem}_s*.json"))]
    cells = spread([100 * record.scores["test"]["raw"].accuracy for record in records])
    folder = RESULTS / "h100" / "evaluations"
    found = [read_evaluation(path) for path in sorted(folder.glob(f"{stem}_s*.json"))]
    six = [100 * x.strategies["six-view"].scores["test"].accuracy for x in found]
    cells += f" | {spread(six) if six else 'not measured'} |"
    (line,) = lines_with(f"h100/{stem}_s0.json)")
    seconds = [record.training_seconds for record in records]
    times = f"{min(seconds):.0f} to {max(seconds):.0f}"
    assert f"| {records[0].epochs} | {len(records)} | {cells} {times} |" in line
    assert f"{cells} {len(records)} | {times} s |" in README


@pytest.mark.parametrize(
    ("arch", "quoted"),
    [
        ("champion_cpu", "takes {:.1f} PFLOP. Enh"),
        ("enhanced_efficient_resnet", "recipe takes {:.0f} PFLOP, for"),
        ("champion", "`champion` takes {:.0f} PFLOP"),
        ("champion_1m", "`champion_1m` {:.0f} PFLOP"),
    ],
)
def test_operations_of_a_training_are_counted(arch: str, quoted: str) -> None:
    of_all = ["--data.val_fraction=0"] if arch == "champion_cpu" else []
    counted = operations_of_training(resolve_config([f"--arch={arch}", *of_all])) / 1e15
    assert quoted.format(counted) in ONE_LINE


def test_sam_resnet_at_half_width_equals_its_records() -> None:
    folder, strategies = (
        RESULTS / "claims" / "evaluations",
        {
            "raw weights, one view": "plain",
            "averaged weights (EMA)": "ema",
            "test-time augmentation (TTA)": "tta",
            "ensemble of raw and averaged weights": "ensemble",
            "TTA and ensemble": "tta+ensemble",
            "averaged weights and TTA": "ema+tta",
        },
    )
    paths = sorted(folder.glob("sam_resnet_table1-mixup-short_cpu-*.json"))
    evaluations = [read_evaluation(path) for path in paths]
    for title, strategy in strategies.items():
        scores = [x.strategies[strategy].scores["test"].accuracy for x in evaluations]
        assert f"| {title} | {spread([100 * x for x in scores])} |" in PAGES
    records = [read_record(RESULTS / "claims" / path.name) for path in paths]
    validation = [100 * record.scores["val"]["ema"].accuracy for record in records]
    assert f"validation accuracy is {spread(validation)}" in ONE_LINE


def test_the_accuracies_after_20_and_60_epochs_equal_their_records() -> None:
    quoted = re.findall(r"\[([\d.]+)%\]\(\.\./experiments/results/(length/[\w-]+\.json)\)", PAGES)
    assert {name for _, name in quoted} == {
        f"length/{path.name}" for path in (RESULTS / "length").glob("*.json")
    }
    for accuracy, name in quoted:
        record = read_record(RESULTS / name)
        assert accuracy == f"{100 * record.scores['val']['raw'].accuracy:.2f}", name


@pytest.mark.parametrize("path", PILOTS, ids=lambda path: path.stem)
def test_a_pilots_accuracy_precedes_its_name(path: Path) -> None:
    accuracy = read_record(path).scores["val"]["raw"].accuracy
    (line,) = lines_with(f"(../{path.relative_to(ROOT)})")
    assert line.endswith(f"| {accuracy:.2%} |")


def test_the_pages_sentence_on_screening_agrees_with_its_records() -> None:
    (suite,) = read_suites(["champion"])
    rung, results = Rung(1, epochs=4, seeds=4), load_results(RESULTS / "screening")
    records = {name: records_of(suite, name, rung, results) for name in suite.rows}
    went_on = [name for name, found in records.items() if len(found) == rung.seeds]
    assert went_on == ["base", "no_policy", "deeper"]
    quoted = re.findall(r"\(([\d.]+)%\)", ONE_LINE.partition("Three rows continued")[2])[
        : len(went_on)
    ]
    ranks = sorted((mean(map(val_accuracy, records[name])) for name in went_on), reverse=True)
    assert quoted == [f"{accuracy:.2f}" for accuracy in ranks]
    assert f"with the {records['base'][0].parameters:,} parameters" in ONE_LINE


@pytest.mark.parametrize("target", [94, 90])
def test_time_to_accuracy_equals_its_runs(target: int) -> None:
    rows = rows_of(f"time_to_{target}")
    ours = [row for row in rows if row["side"] == "ours"]
    accuracies = [100 * row["accuracy"] for row in ours]
    minutes = mean(row["seconds"] for row in ours) / 60
    if target == 94:
        assert f"{mean(accuracies):.2f}% of the test set in {minutes:.1f} minutes" in ONE_LINE
        plain = [100 * row["plain_accuracy"] for row in ours]
        assert f"| {spread(plain)} | {spread(accuracies)} ¹ | 3 | {minutes:.1f} min |" in README
    (line,) = lines_with(f"benchmarks/time_to_{target}.json)")
    several = f"(n = {len(ours)}, standard deviation {stdev(accuracies):.2f})"
    assert f"{mean(accuracies):.2f}% {several}" in line
    assert f"{minutes:.1f} min" in line
    theirs = [row for row in rows if row["side"] == "beside"]
    if theirs:
        assert f"{ours[0]['operations'] / 1e15:.3f} PFLOP" in line
        ratio = mean(row["seconds"] for row in ours) / mean(row["seconds"] for row in theirs)
        assert f"{ratio:.3f}" in line
        both = " and ".join(f"{row['accuracy']:.2%}" for row in theirs)
        seconds = mean(row["seconds"] for row in theirs)
        assert f"{both} in {seconds:.0f} s on average" in ONE_LINE


def test_the_data_paths_ratios_equal_the_record() -> None:
    by_preset = {row["presets"][0]: row for row in rows_of("data")}
    lines = [
        line for line in PAGES.splitlines() if re.match(r"\| (data path|the same, (Enh|`ch))", line)
    ]
    plain, enhanced, champion, share = lines
    resnet = by_preset["resnet"]
    low, high = resnet["ratio_low"], resnet["ratio_high"]
    assert f"| {resnet['ratio']:.1f}x (rounds from {low:.1f} to {high:.1f}) |" in plain
    assert f"| {by_preset['enhanced_efficient_resnet']['ratio']:.1f}x |" in enhanced
    assert f"| {by_preset['champion']['ratio']:.1f}x |" in champion
    assert f"| {by_preset['speed_resnet']['share']['median']:.1%} |" in share


def test_the_trainers_overhead_equals_the_record() -> None:
    (row,) = rows_of("overhead")
    (line,) = lines_with("benchmarks/overhead.json)")
    ratio = row["ratio"]
    rounds = f"(rounds from {ratio['low']:.2f} to {ratio['high']:.2f})"
    assert f"| {ratio['median']:.2f} {rounds} |" in line


def test_six_views_of_unsure_images_equal_the_record() -> None:
    by_strategy = {row["strategy"]: row for row in rows_of("predict")}
    adaptive, all_views = by_strategy["adaptive"], by_strategy["six-view"]
    (line,) = lines_with("benchmarks/predict.json)")
    assert f"{adaptive['over_plain']:.2f}x" in line
    assert f"{adaptive['accuracy']:.2%} against {all_views['accuracy']:.2%}" in line


def steps() -> dict[tuple, dict]:
    """Return the row of each architecture and configuration, from the first record with it."""
    found: dict[tuple, dict] = {}
    for name in STEPS:
        for row in rows_of(name):
            key = row["arch"], row["compiled"], row["precision"], row["memory_format"]
            found.setdefault(key, row)
    return found


def test_the_table_of_steps_equals_the_records() -> None:
    measured = steps()
    table = re.findall(r"^\| (\w+) \| ([\d,]+) \|(.*)\| ([\d,]+ MB) \|$", PAGES, re.MULTILINE)
    assert {arch for arch, *_ in table} == {arch for arch, *_ in measured}
    for arch, batch, cells, memory in table:
        columns = [
            measured[arch, False, "32-true", "contiguous"],
            measured[arch, False, "bf16-mixed", "contiguous"],
            measured[arch, False, "bf16-mixed", "channels_last"],
            measured[arch, True, "bf16-mixed", "channels_last"],
        ]
        best = columns[2]
        speeds = [f"{row['images_per_second']:.0f}" for row in columns]
        share = f"{best['share_of_ceiling']:.0%}"
        assert [cell.strip() for cell in cells.split("|")] == [*speeds, share]
        assert batch == f"{best['batch_size']:,}"
        assert memory == f"{best['peak_bytes'] / 1e6:,.0f} MB"


def test_the_papers_recipe_takes_as_long_on_a_cpu_as_its_steps() -> None:
    images = steps()["sam_resnet", False, "32-true", "contiguous"]["images_per_second"]
    hours = 200 * 45_000 / images / 3600
    assert f"they take {hours:.0f} hours in 32 bits" in ONE_LINE


def test_bf16_in_channels_last_is_as_much_faster_as_the_records_say() -> None:
    (line,) = lines_with("| bf16-mixed and channels-last over 32-bit contiguous")
    for arch, _, _, _ in steps():
        if arch != "enhanced_efficient_resnet":  # its number is compiled, from its own record
            speedup = steps()[arch, False, "bf16-mixed", "channels_last"]["speedup"]["median"]
            assert f"{speedup:.2f}x `{arch}`" in line
    (compiled,) = (
        row["speedup"]
        for row in rows_of("step_enhanced_efficient_resnet")
        if (row["compiled"], row["precision"]) == (True, "bf16-mixed")
        and row["memory_format"] == "channels_last"
    )
    rounds = f"(rounds from {compiled['low']:.2f} to {compiled['high']:.2f})"
    assert f"{compiled['median']:.2f}x {rounds} `enhanced_efficient_resnet`, compiled" in line


def test_the_pages_sentence_on_shift_agrees_with_its_record() -> None:
    (path,) = (RESULTS / "shift").glob("*.json")
    strategies = json.loads(path.read_text())["strategies"]
    (mce,) = re.findall(r"error of ([\d.]+)% and an error of ([\d.]+)% on clean", ONE_LINE)
    raw = strategies["plain"]
    wanted = raw["mean_15"]["mce"], 1 - raw["clean"]["accuracy"]
    assert mce == tuple(f"{100 * error:.2f}" for error in wanted)
    clean, shifted = (
        [raw[images][t]["ece"] for t in ("as_it_is", "fitted")] for images in ("clean", "mean_15")
    )
    assert f"on clean images ({clean[0]:.3f} to {clean[1]:.3f}) and raises it" in ONE_LINE
    assert f"under shift ({shifted[0]:.3f} to {shifted[1]:.3f})" in ONE_LINE
    for other in strategies.values():
        assert abs(other["mean_15"]["mce"] - raw["mean_15"]["mce"]) <= 0.002
        assert abs(other["clean"]["accuracy"] - raw["clean"]["accuracy"]) <= 0.002


def test_the_share_of_detected_mutants_equals_its_record() -> None:
    record = json.loads((RESULTS / "trust" / "mutation.json").read_text())
    page = " ".join((ROOT / "docs" / "reliability.md").read_text().split())
    assert f"{record['noticed']:,} of {record['mutants']:,}" in page
    assert f"{record['equivalent']} of the remaining changes do not affect behaviour" in page
    assert f"the tests notice {record['score']:.1%} of" in page
    survivors = [x for entry in record["modules"].values() for x in entry["survivors"]]
    assert len(survivors) == record["mutants"] - record["noticed"]
    assert all(survivor["reason"] for survivor in survivors)
