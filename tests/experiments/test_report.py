"""The report, made from tiny runs and records, and read in Chromium."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

import datamodules.cifar10
import experiments.reporting.run_details
from datamodules.corruptions import BENCHMARK, CORRUPTIONS
from experiments.claims.suites import load_suites
from experiments.inference.strategies import STRATEGIES
from experiments.records.provenance import ROOT
from experiments.records.record import (
    Calibration,
    Record,
    Shift,
    ShiftMean,
    ShiftResult,
    ShiftScore,
    read_record,
    write_record,
)
from experiments.report import main
from experiments.reporting.collect import Entry
from experiments.reporting.configurations import configurations
from experiments.reporting.figures import BUDGET, Result, draw_curves, draw_results
from experiments.reporting.inline import COLOURS, svg

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
HOSTILE = "<script>document.title = 'owned'</script>\"><img src=x onerror=alert(1)> $x_1$"

Report = Callable[..., str]


@pytest.fixture(scope="module")
def report(few_images: Any, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Write a report of these paths; return its HTML."""

    def report(*paths: object, out: Path | None = None, images: Any = few_images) -> str:
        out = out or tmp_path_factory.mktemp("report")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["report.py", *map(str, paths), "--output", str(out)])
            patch.setattr(datamodules.cifar10, "synthetic_cifar10", images)
            main()
        return (out / "index.html").read_text()

    return report


@pytest.fixture(scope="module")
def run(experiment: Callable[..., Any]) -> Path:
    """The folder of a tiny run with channel and spatial attention, and with an average."""
    return experiment("--model.attention=cbam", pictures=True).folder


@pytest.fixture(scope="module")
def record(run: Path) -> Record:
    return read_record(run / "result.json")


def scored(record: Record, number: int) -> Record:
    """A copy of the record for CIFAR-10 with another configuration, accuracy and name."""
    weights = record.selected or "raw"
    scores = {
        split: {weights: replace(by_weights[weights], accuracy=accuracy)}
        for (split, by_weights), accuracy in zip(
            record.scores.items(), (0.90 + number / 1000, 0.95 - number / 1000), strict=True
        )
    }
    return replace(
        record,
        name=f"run-{number:02}",
        source="cifar10",
        config=record.config | {"model": record.config["model"] | {"lr": (number + 1) / 1000}},
        # Sorted as text, these numbers have another order.
        parameters=(number + 1) * 99_000,
        scores=scores,
    )


@pytest.fixture(scope="module")
def fifty(record: Record, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of fifty configurations; the best on validation is the worst on test."""
    folder = tmp_path_factory.mktemp("records")
    for number in range(50):
        write_record(scored(record, number), folder / f"{number}.json")
    return folder


def rows(html: str) -> list[str]:
    """The names of the runs in the leaderboards, in their order."""
    names = re.findall(
        r'<tr class="run">\s*<td></td>\s*<th scope="row">(?:<a [^>]*>)?([^<]*)', html
    )
    return [name.strip() for name in names]


def without_tags(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_students_of_teachers_that_differ_in_their_seed_are_one_configuration(
    record_of: Callable[..., Record],
) -> None:
    entries = []
    for seed in range(2):
        digest = f"{seed}" * 16
        made = {"weights_digest": digest, "finished": f"2026-01-0{seed + 1}"}
        flags = ["--arch=dms_teacher", f"--seed={seed}"]
        entries.append(Entry(record_of(flags, **made), None))
        flags = ["--arch=dms_resnet", f"--seed={seed}", f"--teacher=elsewhere@{digest}"]
        entries.append(Entry(record_of(flags, finished="2026-02-01"), None))
    entries.append(Entry(record_of([*flags[:2], f"--teacher=elsewhere@{'f' * 16}"]), None))
    found = {x.settings: len(x.entries) for x in configurations(entries)}
    assert sorted(found.values()) == [1, 2, 2]
    (settings,) = (x for x in found if "teacher=dms_teacher" in x)
    assert found[settings] == 2


def test_seconds_are_averaged_over_runs_of_one_device_only(
    record: Record, report: Report, tmp_path: Path
) -> None:
    alike = [
        Entry(
            replace(scored(record, 0), name=f"s{seed}", seed=seed, training_seconds=60.0 + seed),
            None,
        )
        for seed in range(3)
    ]
    (found,) = configurations(alike)
    assert found.seconds == 61
    other = replace(alike[0].record, name="s3", seed=3, device="NVIDIA H200")
    (found,) = configurations([*alike, Entry(other, None)])
    assert found.seconds is None
    for number, entry in enumerate(found.entries):
        write_record(entry.record, tmp_path / f"{number}.json")
    assert report(tmp_path).count('data-value=""') == 1


def test_without_a_run_it_gives_a_command(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    html = report()
    assert "python experiments/run.py --arch sam_resnet --quick" in html
    assert "<table" not in html


def test_by_default_it_uses_all_runs_and_records(
    report: Report, run: Path, fifty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine", "unfinished"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    shutil.copy(run / "result.json", tmp_path / "runs" / "mine")
    results = tmp_path / "experiments" / "results"
    (results / "claims").mkdir(parents=True)
    shutil.copy(fifty / "0.json", results)
    shutil.copy(fifty / "1.json", results / "claims")
    (results / "benchmark.json").write_text('{"images_per_second": 1}')
    monkeypatch.chdir(tmp_path)
    assert rows(report()) == ["run-01", "run-00", run.name]


def test_by_default_unreadable_runs_are_passed_over(
    report: Report,
    run: Path,
    fifty: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refusal: Callable[..., str],
) -> None:
    runs = tmp_path / "runs"
    for folder in ("old", "live", "mine/wandb"):
        (runs / folder).mkdir(parents=True)
    shutil.copy(run / "result.json", runs / "mine")
    (runs / "old" / "result.json").write_text("{}")
    # Incomplete files of running jobs.
    (runs / "mine" / "wandb" / "summary.json").write_text("{")
    (runs / "live" / "config.yaml").write_text("seed: 0\n")
    (runs / "live" / "wandb-summary.json").write_text("{")
    (runs / "mine" / "evaluation.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert rows(report()) == [run.name]
    lines = capsys.readouterr().err.splitlines()
    passed = [line for line in lines if line.startswith("passed over: ")]
    assert [line.partition(": ")[2].partition(":")[0] for line in passed] == [
        "runs/old/result.json is not a valid record",
        "runs/mine/evaluation.json is not a valid evaluation",
    ]
    shutil.copy(fifty / "0.json", runs)
    assert refusal("runs/old", act=report).startswith("runs/old/result.json is not a valid record")
    shutil.rmtree(runs / "old")
    (runs / "mine" / "evaluation.json").unlink()
    assert rows(report("runs")) == ["run-00", run.name]


def test_a_run_without_a_test_counts_for_claims_and_is_not_listed(
    report: Report, record: Record, record_of: Callable[..., Record], tmp_path: Path
) -> None:
    suite = load_suites()["champion"]
    claim = suite.claims[0]
    for name in claim.rows:
        chosen = record_of(suite.rows[name].flags("full", 0), name=name)
        chosen = replace(chosen, scores={"val": chosen.scores["val"]})
        write_record(chosen, tmp_path / f"{name}.json")
    html = report(tmp_path)
    assert "No runs yet" not in html
    assert "Not listed: 2 runs without a test accuracy" in without_tags(html)
    assert f" {claim.text} " in without_tags(html).partition("claims without a record")[0]
    write_record(scored(record, 0), tmp_path / "tested.json")
    html = report(tmp_path)
    assert rows(html) == ["run-00"]
    assert "Not listed: 2 runs without" in without_tags(html)
    assert "Not listed" not in report(tmp_path / "tested.json")


def test_a_run_shows_everything_in_its_folder(report: Report, run: Path, record: Record) -> None:
    html = report(run)
    text = without_tags(html)
    assert text.count("Not shown: ") == text.count("Not shown: python experiments/evaluate.py") == 2
    weights = record.selected or "raw"
    for part in (
        f"Accuracy of {run.name} on its training batches and 200 validation images.",
        f"Learning rate of {run.name} over 6 steps.",
        f"As trained: {run.name}, {weights} weights, 300 test images, ECE "
        f"{record.scores['test'][weights].ece:.4f}.",
        "fitted on validation",
        f"{run.name}, {weights} weights, 300 images.",
        "The 12 test images with the lowest probability of their labelled class",
        f"Spatial attention of {run.name}",
        f"Channel attention of {run.name}",
        "stage 3, block 1",
        "16 training images as the network sees them",
        "SAMResNet has 5.02M parameters",
    ):
        assert part in text, part
    assert f"evaluate.py {run}</code> measures the strategies" in html
    assert f"evaluate.py {run} --shift</code> measures the shift" in html


def test_the_best_on_validation_is_first_and_incomparable_rows_are_last(
    report: Report, record: Record, fifty: Path, tmp_path: Path
) -> None:
    quick = replace(scored(record, 90), quick=True)
    write_record(quick, tmp_path / "quick.json")
    without_val = scored(record, 91)
    without_val = replace(without_val, selected=None, scores={"test": record.scores["test"]})
    write_record(without_val, tmp_path / "without_val.json")
    names = rows(report(fifty, tmp_path))
    assert names == [f"run-{i:02}" for i in reversed(range(50))] + ["run-91", "run-90"]


def test_a_copy_of_a_runs_record_counts_once(report: Report, run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "result.json", tmp_path / "copy.json")
    html = report(run, tmp_path / "copy.json")
    assert rows(html) == [run.name]
    assert html.count("<h3") == 1


@pytest.mark.parametrize("damaged", [False, True])
def test_missing_and_damaged_files_are_named_and_the_rest_is_shown(
    report: Report, run: Path, tmp_path: Path, damaged: bool
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for file in copy.iterdir():
        if file.name != "result.json" and file.is_file():
            file.write_bytes(b"PK\3\4 torn") if damaged else file.unlink()
    html = report(copy)
    assert rows(html) == [run.name]
    notes = re.findall(r'<h4>([^<]*)</h4>\s*<p class="note">Not shown: (.*?)</p>', html)
    assert [title for title, _ in notes] == [
        "Curves", "Reliability", "Confusion", "Hardest test images", "Attention",
        "Augmented training images", "Strategies of prediction", "Distribution shift",
    ]  # fmt: skip
    reasons = dict(notes)
    assert str(copy) in reasons["Attention"]
    assert damaged or str(copy / "metrics.csv") in reasons["Curves"]


def test_images_of_another_test_set_are_not_shown_as_the_runs(
    report: Report, run: Path, few_images: Any
) -> None:
    def relabelled(split: str, **_) -> Any:
        images, labels = few_images(split)
        return images, labels.roll(1)

    assert "these test images are not the images of the run" in report(run, images=relabelled)


def test_images_of_another_data_set_are_named_and_not_called_synthetic(
    report: Report, run: Path, record: Record, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    write_record(replace(record, source="cifar100"), copy / "result.json")
    html = report(copy)
    assert '<span class="badge">CIFAR-100</span>' in html
    assert f"epochs of {record.train_images:,} images of CIFAR-100, seed" in html
    assert '<span class="badge">synthetic</span>' not in html
    assert '<span class="badge">synthetic</span>' in report(run)


def test_a_run_on_another_data_set_has_no_rank_and_no_point_in_the_chart(
    report: Report, record: Record, tmp_path: Path
) -> None:
    other = replace(scored(record, 1), source="folder", name="pictures")
    write_record(other, tmp_path / "other.json")
    ranks = r'<tbody>\s*<tr>\s*<td class="number" data-value="(.*?)"'
    html = report(tmp_path)
    assert re.findall(ranks, html) == [""]
    assert "There are none here." in html
    write_record(scored(record, 0), tmp_path / "cifar10.json")
    html = report(tmp_path)
    assert (rows(html), re.findall(ranks, html)) == (["run-00", "pictures"], ["1", ""])
    assert "against parameters of 1 configuration. " in html


def test_a_strategy_chosen_without_validation_was_chosen_beforehand(
    report: Report, run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    evaluated = ROOT / "weights" / "tiny_100k" / "evaluation.json"
    shutil.copy(evaluated, copy)
    assert "★ chosen beforehand." in report(copy)


def test_corruption_errors_are_means_over_severities(
    report: Report, run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    calibration = Calibration(nll=1.0, brier=0.5, ece=0.1234, classwise_ece=0.1)

    def score(accuracy: float) -> ShiftScore:
        return ShiftScore(accuracy, calibration, None)

    def result(worse: float) -> ShiftResult:
        corrupted = {
            name: [score(0.8 - worse - i / 100), score(0.6 - worse - i / 100)]
            for i, name in enumerate(CORRUPTIONS)
        }
        mean_15 = ShiftMean(0.37 + worse, calibration, calibration)
        mean_19 = ShiftMean(0.39 + worse, calibration, calibration)
        plain = asdict(STRATEGIES["plain"])
        return ShiftResult(plain, None, score(0.9 - worse), corrupted, mean_15, mean_19, None)

    shift = Shift(
        run="copy", command="", source="synthetic", commit="", dirty=False, versions={}, device="",
        precision="32-true", finished="", corruptions="generated", seed=0, severities=[1, 5],
        images=300, strategies={"plain": result(0.0), "ema": result(0.05)},
    )  # fmt: skip
    write_record(shift, copy / "shift.json")
    html = report(copy)
    table = html[html.index("Distribution shift</h4>") :]
    found = {
        name: re.findall(r"<td[^>]*>([^<]*)", cells)
        for name, cells in re.findall(r'<th scope="row">([^<]*)</th>(.*?)</tr>', table)
    }
    assert found["none (clean)"] == ["10.00", "15.00"]
    for i, name in enumerate(CORRUPTIONS):
        assert found[name.replace("_", " ")] == [f"{30 + i:.2f}", f"{35 + i:.2f}"]
    assert found["mCE of these 15"] == ["37.00", "42.00"]
    assert found["mCE of all 19"] == ["39.00", "44.00"]
    assert found["ECE, mean of all 19"] == ["0.1234", "0.1234"]
    names = list(found)
    assert names.index("mCE of these 15") == 1 + len(BENCHMARK)


@pytest.mark.parametrize(
    ("path", "content", "answer"),
    [
        ("nowhere", None, "{} does not exist: name a run, a record or a folder"),
        ("empty/", None, "{} contains neither a finished run nor a record"),
        ("a.json", "[1, 2]", "{} is not a valid record: "),
        ("a.json", '{"arch": "resnet"}', "{} is not a valid record: "),
        ("a.json", "\0\1", "{} is not a valid record: Invalid JSON"),
        ("broken/a.json", "{", "{} is not a valid JSON file: Invalid JSON"),
        ("run/result.json", "{}", "{} is not a valid record"),
    ],
)
def test_a_path_without_a_record_is_one_line_and_the_old_page_stays(
    report: Report,
    refusal: Callable[..., str],
    tmp_path: Path,
    path: str,
    content: str | None,
    answer: str,
) -> None:
    place = tmp_path / path
    if path.endswith("/"):
        place.mkdir()
    elif content is not None:
        place.parent.mkdir(exist_ok=True)
        place.write_text(content)
    given = place.parent if "/" in path and content else place
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("old")
    line = refusal(given, act=lambda *paths: report(*paths, out=out))
    assert line.startswith(answer.format(place)), line
    assert [file.read_text() for file in out.iterdir()] == ["old"]


def test_an_edited_record_is_refused(
    report: Report, refusal: Callable[..., str], fifty: Path, tmp_path: Path
) -> None:
    edited = tmp_path / "edited.json"
    edited.write_text((fifty / "3.json").read_text().replace("0.903", "0.993"))
    assert "it was edited" in refusal(edited, act=report)


@pytest.mark.parametrize("out", ["file", "file/within"])
def test_an_output_that_is_a_file_is_rejected_before_anything_is_read(
    report: Report, refusal: Callable[..., str], tmp_path: Path, out: str
) -> None:
    (tmp_path / "file").write_text("mine")
    line = refusal("nowhere", act=lambda *paths: report(*paths, out=tmp_path / out))
    assert line == f"--output {tmp_path / out} must be a folder: {tmp_path / 'file'} is not one"
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unknown_flag_is_one_line(refusal: Callable[..., str], report: Report) -> None:
    assert refusal("--title", act=report) == "unrecognized arguments: --title"


def test_curves_count_epochs_from_finished_steps() -> None:
    metrics = {"val/acc": [(4, 0.5), (9, 0.6)], "val/acc_ema": [(4, 0.4), (9, 0.7)]}
    [axis] = draw_curves(metrics, "acc", steps_per_epoch=5).figure.axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn == {"raw": [[1, 0.5], [2, 0.6]], "EMA": [[1, 0.4], [2, 0.7]]}


def test_an_interrupted_epoch_stretches_no_curve(
    report: Report, run: Path, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []
    draw = experiments.reporting.run_details.draw_curves

    def spy(metrics: Any, measure: str, steps: float) -> Any:
        drawn.append(steps)
        return draw(metrics, measure, steps)

    monkeypatch.setattr(experiments.reporting.run_details, "draw_curves", spy)
    shutil.copytree(run, tmp_path / "cut")
    # Epochs have three batches. Step 4 is in the second epoch, which is also counted.
    write_record(replace(record, steps=4), tmp_path / "cut" / "result.json")
    report(tmp_path / "cut")
    assert drawn == [3, 3]


def test_the_budget_is_a_line_at_five_million_parameters() -> None:
    [axis] = draw_results([Result(1, "resnet", 298_290, 0.8, None, "text")]).figure.axes
    assert [BUDGET, BUDGET] in [list(line.get_xdata()) for line in axis.lines]
    assert BUDGET == 5_000_000
    low, high = axis.get_xlim()
    assert low < 298_290 < BUDGET < high


def test_a_drawing_leaves_its_colours_to_the_page_and_text_as_it_is() -> None:
    result = Result(1, HOSTILE, 298_290, 0.8, 0.01, HOSTILE)
    drawing = str(svg(draw_results([result]).figure, "name", HOSTILE))
    assert "var(--series-0)" in drawing
    assert not [colour for colour in COLOURS.values() if colour in drawing]
    assert "<script" not in drawing
    assert "<img" not in drawing
    assert "$x_1$" in without_tags(drawing)


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    offline = (
        "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=offline.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def full(report: Report, run: Path, fifty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with fifty records and two runs; one run has a hostile name."""
    hostile = tmp_path_factory.mktemp("runs") / "hostile"
    shutil.copytree(run, hostile)
    write_record(replace(read_record(run / "result.json"), name=HOSTILE), hostile / "result.json")
    out = tmp_path_factory.mktemp("full")
    report(run, hostile, fifty, out=out)
    return out / "index.html"


@pytest.fixture
def page(browser: Browser, full: Path) -> Iterator[Page]:
    """The page on a desktop. Console messages, dialogs and network requests are errors."""
    said: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on(
        "request",
        lambda request: (
            request.url.startswith("data:")
            or request.url.partition("#")[0] == full.as_uri()
            or said.append(request.url)
        ),
    )
    page.goto(full.as_uri())
    yield page
    page.close()
    assert not said


def column(page: Page, title: str) -> tuple[Locator, Callable[[], list[str]]]:
    """A column's button, and a function that returns the texts of its cells."""
    table = page.locator("table.sortable").first
    titles = table.locator("thead th").all_inner_texts()
    number = next(i for i, text in enumerate(titles, 1) if text.split()[0] == title)
    cells = table.locator(f"tbody > tr:first-child > :nth-child({number})")
    button = table.locator(f"thead th:nth-child({number}) button")
    return button, cells.all_inner_texts


def test_a_click_sorts_numbers_as_numbers_and_another_one_turns_them_round(page: Page) -> None:
    button, read = column(page, "Parameters")
    numbers = sorted((int(x.replace(",", "")) for x in read()), reverse=True)
    assert len(numbers) == 50
    button.click()
    assert [int(x.replace(",", "")) for x in read()] == numbers
    button.click()
    assert [int(x.replace(",", "")) for x in read()] == numbers[::-1]


def test_enter_sorts_and_the_heading_shows_the_order(page: Page) -> None:
    button, read = column(page, "Configuration")
    sorted_columns = page.locator("table.sortable").first.locator("th[aria-sort]")
    assert sorted_columns.all_inner_texts()[0].split()[0] == "#"
    button.focus()
    page.keyboard.press("Enter")
    names = read()
    assert names == sorted(names)
    assert sorted_columns.count() == 1
    assert sorted_columns.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert read() == names[::-1]
    assert sorted_columns.get_attribute("aria-sort") == "descending"
    assert sorted_columns.inner_text().split()[0] == "Configuration"


def test_a_hostile_name_is_text_and_nothing_of_it_runs(page: Page) -> None:
    assert page.title() == "Sub5M report"
    heading = page.locator("h3", has_text="onerror").first
    assert heading.text_content() == HOSTILE
    assert page.locator("script").count() == 1


def test_every_picture_has_a_size_and_says_what_it_shows(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((x) => (x.open = true))")
    pictures = page.evaluate(
        """[...document.querySelectorAll("img, svg")].map((x) => ({
            tag: x.tagName, width: x.getBoundingClientRect().width,
            height: x.getBoundingClientRect().height, loaded: x.tagName === "svg" || x.naturalWidth,
            role: x.getAttribute("role"), text: x.getAttribute("alt") ?? x.ariaLabel,
            stated: x.hasAttribute("width") && x.hasAttribute("height")}))"""
    )
    assert {x["tag"] for x in pictures} == {"IMG", "svg"}
    for x in pictures:
        assert min(x["width"], x["height"]) > 5, x
        assert x["loaded"], x
        assert x["stated"], x
        assert len(x["text"].split()) > 2, x
        assert x["role"] == "img" or x["tag"] == "IMG", x


def test_identifiers_are_unique_and_headings_leave_no_level_out(page: Page) -> None:
    identifiers = page.evaluate("[...document.querySelectorAll('[id]')].map((x) => x.id)")
    assert len(identifiers) == len(set(identifiers))
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map((x) => Number(x.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_the_first_tab_stop_leads_to_the_content(page: Page) -> None:
    page.keyboard.press("Tab")
    link = page.locator(":focus")
    assert link.inner_text() == "Skip to the content"
    assert link.bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_link_opens_its_run(page: Page) -> None:
    closed = page.locator("details:not([open]):has(h3)")
    assert closed.count() == 1
    page.evaluate(
        "document.querySelectorAll('#miniatures ~ details, details:has(pre)')"
        ".forEach((x) => (x.open ||= !x.querySelector('h3')))"
    )
    page.locator("table.sortable a").last.click()
    # `expect` polls without `eval`, which the page's security policy forbids.
    expect(page.locator("details[open]:has(h3)")).to_have_count(2)


def test_the_page_never_scrolls_sideways(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((x) => (x.open = true))")
    for width in (375, 400, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width


LUMINANCES = """(() => {
    const luminance = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map((x) => x / 255)
            .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const texts = [...document.querySelectorAll("p, h2, th, figcaption, .note, small, .verdict")];
    return {
        paper: luminance(getComputedStyle(document.body).backgroundColor),
        texts: texts.map((x) => luminance(getComputedStyle(x).color)),
        drawn: [...document.querySelectorAll("svg text")]
            .map((x) => luminance(getComputedStyle(x).fill)),
    };
})()"""


def test_text_is_legible_on_light_and_dark_paper_and_print_is_light(page: Page) -> None:
    papers = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate(LUMINANCES)
        papers[scheme] = found["paper"]
        assert found["drawn"]
        for text in found["texts"] + found["drawn"]:
            lighter, darker = max(text, found["paper"]), min(text, found["paper"])
            # WCAG 2.2, contrast (minimum)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5
    assert papers["light"] > 0.9
    assert papers["dark"] < 0.05
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate(LUMINANCES)["paper"] == papers["light"]


def test_a_page_without_runs_is_as_wide_as_a_phone(
    browser: Browser, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report(out=tmp_path / "out")
    page = browser.new_page(viewport={"width": 375, "height": 800})
    page.goto((tmp_path / "out" / "index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    page.close()


@pytest.fixture(scope="module")
def seeds(record: Record, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with three seeds and a repeated seed of one configuration, and with a miniature."""
    folder = tmp_path_factory.mktemp("seeds")
    accuracies = {"s0": (0, 0.90), "s1": (1, 0.91), "s2": (2, 0.95), "repeated": (2, 0.10)}
    for day, (name, (seed, accuracy)) in enumerate(accuracies.items(), 1):
        made = scored(record, 0)
        [(weights, score)] = made.scores["test"].items()
        scores = made.scores | {"test": {weights: replace(score, accuracy=accuracy)}}
        finished = f"2026-01-0{day}T00:00:00+00:00"
        made = replace(made, name=name, seed=seed, scores=scores, finished=finished)
        write_record(replace(made, config=made.config | {"seed": seed}), folder / f"{name}.json")
    return folder


@pytest.fixture
def seeds_page(
    browser: Browser,
    report: Report,
    seeds: Path,
    record_of: Callable[..., Record],
    tmp_path: Path,
) -> Iterator[Page]:
    flags = load_suites()["sam_resnet_table1"].rows["se"].flags("mini", 0)
    write_record(record_of(flags, name="miniature"), tmp_path / "miniature.json")
    report(seeds, tmp_path / "miniature.json", out=tmp_path / "out")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((tmp_path / "out" / "index.html").as_uri())
    yield page
    page.close()


def test_a_configuration_is_one_row_with_mean_sd_and_seeds(seeds_page: Page) -> None:
    """A repeated seed counts once, by its earliest run."""
    assert column(seeds_page, "Test")[1]() == ["92.00 ± 2.65"]
    assert column(seeds_page, "n")[1]() == ["3"]
    runs = seeds_page.locator("table.sortable").first.locator("tr.run")
    expect(runs).to_have_count(4)
    expect(runs.first).to_be_hidden()
    summary = seeds_page.locator("table.sortable summary").first
    summary.focus()
    seeds_page.keyboard.press("Enter")
    expect(runs.first).to_be_visible()
    assert [x.split()[0] for x in runs.locator("th").all_inner_texts()] == [
        "s0", "s1", "s2", "repeated",
    ]  # fmt: skip
    seeds_page.keyboard.press("Enter")
    expect(runs.first).to_be_hidden()


def test_miniatures_are_in_a_closed_section_at_the_end(seeds_page: Page) -> None:
    row = seeds_page.locator("section", has=seeds_page.locator("#miniatures")).locator("table")
    expect(row).to_be_hidden()
    seeds_page.locator("nav a", has_text="Miniatures").click()
    expect(row).to_be_visible()
    assert "trainer.max_epochs=6" in row.inner_text()
    assert seeds_page.locator("section h2").last.inner_text() == "Miniatures and quick runs"


def test_a_chart_shows_values_run_and_command_at_the_pointer_and_the_slider(page: Page) -> None:
    tip = page.locator("#tip")
    expect(tip).to_be_hidden()
    curve = page.locator(".charts .chart").first
    curve.scroll_into_view_if_needed()
    curve.hover()
    expect(tip).to_contain_text("epoch ")
    expect(tip).to_contain_text("experiments/run.py")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    slider = curve.get_by_role("slider")
    slider.focus()
    page.keyboard.press("End")
    expect(tip).to_contain_text("epoch 2\n")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("^epoch 2\ntraining"))
    box, width = tip.bounding_box(), page.viewport_size["width"]
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    slider.blur()
    expect(tip).to_be_hidden()


def test_help_and_mistakes_import_neither_torch_nor_lightning(tmp_path: Path) -> None:
    for flags in (["--help"], [str(tmp_path / "nowhere")]):
        code = (
            "import sys\nfrom experiments.report import main\n"
            f"sys.argv = ['report.py', *{flags!r}]\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            "assert not {'torch', 'lightning', 'matplotlib'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
