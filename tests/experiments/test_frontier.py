import re
import shutil
from dataclasses import asdict, replace
from hashlib import sha256

import pytest
from PIL import Image

from experiments.claims.suites import RESULTS
from experiments.inference.strategies import STRATEGIES
from experiments.records.record import Score, read_benchmark, read_evaluation, write_record
from experiments.reporting.frontier import (
    DRAWN_WITH,
    PAGE,
    PICTURE,
    SPEED,
    draw,
    find_points,
    render,
    write_frontier,
)


@pytest.fixture
def record(tmp_path, record_of):
    """Write the record of a run with these flags and this test accuracy."""

    def record(name, flags, accuracy, **fields):
        score = Score(accuracy, nll=0.3, ece=0.0, images=10_000, checkpoint="best.ckpt", epoch=6)
        scores = {"val": {"raw": score}, "test": {"raw": score}}
        write_record(
            record_of(flags, name=name, **{"scores": scores, **fields}), tmp_path / f"{name}.json"
        )

    return record


def ours(folder):
    return [point for point in find_points(folder) if point.group == "this project"]


def test_the_committed_page_equals_a_new_rendering():
    page = (RESULTS / PAGE).read_text()
    assert page == render(find_points(RESULTS))
    with Image.open(RESULTS / PICTURE) as picture:
        assert picture.text[DRAWN_WITH] == sha256(page.encode()).hexdigest()


def test_seeds_of_one_training_are_one_point_with_their_interval(record, tmp_path):
    for seed, accuracy in enumerate((0.951, 0.953)):
        flags = ["--arch=champion", f"--seed={seed}"]
        record(f"run{seed}", flags, accuracy, parameters=4_298_970, dirty=seed == 1)
    record("other", ["--arch=champion", "--data.cutout=8"], 0.96)
    other, point = ours(tmp_path)
    assert point.name == "champion"
    assert point.accuracy.value == pytest.approx(95.2)
    assert point.accuracy.n == (2,)
    assert point.source == "run0, run1"
    assert point.note.endswith("; 1 of 2 runs from a changed checkout")
    assert point.parameters == 4_298_970
    # 600 epochs of 87 batches of 512 images; a backward pass costs two forward passes.
    assert point.operations / (3 * 600 * 87 * 512) == pytest.approx(2 * 619e6, rel=0.01)
    assert other.accuracy.interval is None


def test_a_repeated_run_counts_once(record, tmp_path):
    record("run", ["--arch=champion"], 0.951)
    record("copy", ["--arch=champion"], 0.951, finished="2026-01-02T00:00:00+00:00")
    (point,) = ours(tmp_path)
    assert point.accuracy.n == (1,)
    assert point.source == "run"


@pytest.mark.parametrize(("chosen", "several"), [("tta", True), ("ensemble", False)])
def test_only_a_strategy_of_several_views_counts_as_such(record, tmp_path, chosen, several):
    evaluation = read_evaluation(RESULTS / "evaluations" / "champion_cpu.json")
    strategies = {
        name: replace(evaluation.strategies["plain"], strategy=asdict(STRATEGIES[name]))
        for name in ("plain", chosen)
    }
    found = replace(evaluation, runs=["run"], chosen=chosen, strategies=strategies)
    write_record(found, tmp_path / "evaluation.json")
    plain = evaluation.strategies["plain"].scores["test"].accuracy
    record("run", ["--arch=champion"], plain)
    (point,) = ours(tmp_path)
    assert (point.views is not None) == several


def test_quick_synthetic_and_small_runs_are_left_out(record, tmp_path):
    record("quick", ["--arch=resnet"], 0.95, quick=True)
    record("synthetic", ["--arch=resnet", "--seed=1"], 0.95, source="synthetic")
    record("miniature", ["--arch=resnet", "--model.base_width=4"], 0.83)
    score = Score(0.95, nll=0.3, ece=0.0, images=5_000, checkpoint="best.ckpt", epoch=6)
    record("screened", ["--arch=resnet", "--test=false"], 0.95, scores={"val": {"raw": score}})
    assert ours(tmp_path) == []
    assert draw(find_points(tmp_path)).axes  # only the points of others


def test_the_speed_benchmark_is_a_point_with_one_view_and_with_several(tmp_path):
    (tmp_path / SPEED.parent).mkdir()
    shutil.copy(RESULTS / SPEED, tmp_path / SPEED)
    rows = [row for row in read_benchmark(RESULTS / SPEED).rows if row["side"] == "ours"]
    (point,) = ours(tmp_path)
    assert (point.name, point.parameters) == ("speed_resnet", 1_971_352)
    mean = sum(row["accuracy"] for row in rows) / len(rows)
    assert point.views.value == pytest.approx(100 * mean)
    assert point.accuracy.value < point.views.value
    assert point.operations == rows[0]["operations"]


def test_the_papers_claims_have_the_counted_parameters(tmp_path):
    counted = {p.source: p.parameters for p in find_points(tmp_path) if "papers" in p.group}
    assert sorted(counted.values()) == [4_733_610, 4_913_705]


def test_known_results_with_several_views_are_hollow(tmp_path):
    points = [point for point in find_points(tmp_path) if point.name == "airbench94"]
    (line,) = render(points).splitlines()[-1:]
    assert line.startswith("| 1 | airbench94 |  | 94.01 |  | 0.36 |")
    _, right = draw(points).axes
    (drawn,) = [line for line in right.lines if len(line.get_xdata())]
    assert drawn.get_markerfacecolor() == "none"


def test_a_point_without_parameters_is_in_the_table_alone(tmp_path):
    points = [point for point in find_points(tmp_path) if point.name == "searched cells"]
    assert "| 1 | searched cells | 98.19 |" in render(points)
    assert not any(len(line.get_xdata()) for axis in draw(points).axes for line in axis.lines[:3])


def test_the_page_numbers_points_from_the_best_on(tmp_path):
    page = write_frontier(tmp_path).read_text()
    found = re.findall(r"^\| \d+ \| .*? \| (?: \| )?([\d.]+)", page, re.MULTILINE)
    accuracies = [float(x) for x in found]
    assert accuracies == sorted(accuracies, reverse=True)
    assert len(accuracies) == len(find_points(tmp_path)) > 10
    assert {path.name for path in tmp_path.iterdir()} == {PAGE, PICTURE}


def test_a_point_names_the_longest_training_on_each_device(record, tmp_path):
    flags = ["--arch=champion"]
    record("cpu", [*flags, "--seed=0"], 0.95, device="CPU", training_seconds=600)
    record("gpu1", [*flags, "--seed=1"], 0.95, device="GPU", training_seconds=20)
    record("gpu2", [*flags, "--seed=2"], 0.95, device="GPU", training_seconds=30)
    [point] = ours(tmp_path)
    assert "10 min on CPU, 30 s on GPU" in point.note
