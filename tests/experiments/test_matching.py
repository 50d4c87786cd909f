import json
import re

import pytest
import yaml

from experiments.claims.matching import Results, load_results, training_of
from experiments.claims.suites import RESULTS, load_suites
from experiments.console import UserError
from experiments.records.record import read_evaluation, write_record
from experiments.training.configuration import resolve_config

BASELINE, SE = (load_suites()["sam_resnet_table1"].rows[name] for name in ("baseline", "se"))
COMMAND = "--arch resnet --model.base_width 16 --name a --output b"


@pytest.fixture
def of_row(record_of):
    """Create a record of a row with additional flags."""

    def of_row(*flags, row=BASELINE, scale="mini", seed=0, **fields):
        return record_of([*row.flags(scale, seed), *flags], **fields)

    return of_row


@pytest.mark.parametrize("flags", [["--ema.decay=0.9", "--seed=3"], ["--quick"]])
def test_flags_resolve_to_the_settings_in_run_pys_record(build, flags):
    cli = build("--arch=sam_resnet", "--model.base_width=4", *flags)
    assert resolve_config(cli.launch.arguments) == yaml.safe_load(cli.resolved)


def test_flags_that_run_py_rejects_are_rejected(refusal):
    def resolve(*flags):
        return resolve_config(list(flags))

    assert "--model.lrr" in refusal("--arch=resnet", "--model.lrr=1", act=resolve)
    assert "--arch is missing" in refusal("--model.lr=1", act=resolve)


@pytest.mark.parametrize(
    "flags",
    [
        "--name=other --output=elsewhere --wandb=online",
        "--trainer.enable_progress_bar=false --trainer.log_every_n_steps=1",
        "--trainer.max_time=00:00:09:00 --trainer.accelerator=cpu",
        "--model.compile=true --model.channels_last=true --data.eval_batch_size=1000",
        "--data.root=/data --data.download=false --budget=false",
        "--lookahead=true",
    ],
)
def test_a_setting_without_effect_on_the_result_does_not_count(of_row, flags):
    record = of_row(*flags.split(), seed=1)
    assert Results((record,)).of_row(BASELINE, "mini") == {1: record}


@pytest.mark.parametrize(
    "flags",
    [
        "--model.lr=0.2",
        "--data.split_seed=1",
        "--data.val_fraction=0",
        "--trainer.max_epochs=7",
        "--trainer.precision=32-true",
        "--trainer.limit_train_batches=10",
        "--lookahead.k=6",
        "--ema=true",
    ],
)
def test_a_setting_that_changes_the_result_counts(of_row, flags):
    record = of_row(*flags.split())
    assert Results((record,)).of_row(BASELINE, "mini") == {}


def test_a_row_has_only_records_of_its_scale(of_row):
    full, mini = of_row(scale="full"), of_row(scale="mini")
    results = Results((full, mini))
    assert results.of_row(BASELINE, "full") == {0: full}
    assert results.of_row(BASELINE, "mini") == {0: mini}
    assert results.of_row(SE, "mini") == {}


def test_a_run_on_synthetic_images_is_not_a_run_on_cifar10(of_row):
    assert Results((of_row(source="synthetic"),)).of_row(BASELINE, "mini") == {}
    automatic = of_row("--data.source=auto")
    assert Results((automatic,)).of_row(BASELINE, "mini") == {0: automatic}


def test_a_setting_missing_in_an_older_record_has_todays_default(of_row):
    record = of_row()
    config = json.loads(json.dumps(record.config))
    del config["model"]["rising"]
    del config["data"]["rotation"]
    del config["swa"]
    assert training_of(config, "cifar10") == training_of(record.config, "cifar10")
    earlier = of_row("--model.rising=0.3")
    assert training_of(config, "cifar10") != training_of(earlier.config, "cifar10")


def test_the_earlier_of_two_records_with_one_seed_counts(of_row):
    later = of_row(finished="2026-01-03T00:00:00+00:00")
    earlier, other = of_row(), of_row(seed=2)
    assert Results((later, other, earlier)).of_row(BASELINE, "mini") == {0: earlier, 2: other}


def test_students_of_one_training_belong_together_for_any_teachers_seed(record_of):
    rows = load_suites()["dms_resnet"].rows
    records = []
    for seed, digest in enumerate(("0" * 16, "1" * 16)):
        made = {"name": f"{seed}", "finished": f"2026-01-0{seed + 1}T00:00:00+00:00"}
        flags = rows["teacher"].flags("full", seed)
        records.append(record_of(flags, weights_digest=digest, **made))
        flags = [*rows["student"].flags("full", seed), f"--teacher=elsewhere@{digest}"]
        records.append(record_of(flags, **made | {"finished": f"2026-02-0{seed + 1}"}))
    stranger = record_of([*rows["student"].flags("full", 2), f"--teacher=runs/x@{'2' * 16}"])
    alone = record_of(rows["alone"].flags("full", 0))
    results = Results((*records, stranger, alone))
    assert results.of_row(rows["student"], "full") == {0: records[1], 1: records[3]}
    assert results.of_row(rows["teacher"], "full") == {0: records[0], 1: records[2]}
    assert results.of_row(rows["alone"], "full") == {0: alone}


def test_every_training_has_its_records_by_seed_each_once(of_row):
    first, second, copy = of_row(), of_row(seed=1), of_row(finished="2026-01-02T00:00:00+00:00")
    other = of_row(row=SE)
    assert list(Results((second, copy, other, first)).trainings.values()) == [
        {0: first, 1: second},
        {0: other},
    ]


@pytest.fixture
def record(record_of):
    return record_of(COMMAND.split())


@pytest.fixture
def folder(tmp_path, record):
    """A folder with a record and two files that are no records."""
    (tmp_path / "deep").mkdir()
    write_record(record, tmp_path / "deep" / "a.json")
    (tmp_path / "benchmark.json").write_text('{"seconds": 1}')
    (tmp_path / "list.json").write_text("[1]")
    return tmp_path


def edit(folder, old, new):
    path = folder / "deep" / "a.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def without_digest(folder):
    path = folder / "deep" / "a.json"
    path.write_text(re.sub(r'"digest": "\w+"', '"digest": null', path.read_text()))


def test_records_are_found_in_subfolders_and_other_files_are_ignored(folder, record):
    assert load_results(folder).records == (record,)
    without_digest(folder)
    assert load_results(folder).records == (record,)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"lr": 0.1', '"lr": 0.2'),
        ('"accuracy": 0.9', '"accuracy": 0.95'),
        ('"seed": 0', '"seed": 1'),
        ("--model.base_width 16", "--model.base_width 8"),
    ],
)
def test_an_edited_record_gives_one_line(folder, old, new):
    edit(folder, old, new)
    with pytest.raises(UserError, match=r"deep/a.json .* was edited$") as error:
        load_results(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            '"lr": 0.1',
            '"lr": 0.2',
            r"model.lr is 0.2 in its config and 0.1 by its command: the record was edited",
        ),
        (
            '"cutout": 16',
            '"cutout": 8',
            "data.cutout is 8 in its config and 16 by its command: the record was ed",
        ),
        ('"arch": "resnet"', '"arch": "sam_resnet"', "arch is sam_resnet, and resnet in its con"),
        ('"seed": 0,\n  "parameters"', '"seed": 1,\n  "parameters"', "seed is 1, and 0 in its"),
    ],
)
def test_an_edited_record_without_a_digest_is_refused_by_its_command(folder, old, new, reason):
    without_digest(folder)
    edit(folder, old, new)
    with pytest.raises(UserError, match=reason):
        load_results(folder)


def test_a_resumed_run_has_the_settings_of_its_commands(folder, record_of):
    commands = [f"run.py {COMMAND}", "run.py --name a --ckpt_path last --model.lr 0.2"]
    commands = [f"python {command}" for command in commands]
    record = record_of([*COMMAND.split(), "--model.lr", "0.2"], command=commands)
    write_record(record, folder / "deep" / "a.json")
    without_digest(folder)
    assert load_results(folder).records == (record,)


@pytest.mark.parametrize("text", ['{"arch": ', '{"arch": "a", "config": {}, "scores": {}}'])
def test_a_broken_record_is_refused_in_one_line(folder, text):
    (folder / "half.json").write_text(text)
    with pytest.raises(UserError, match=r"half.json is not a valid ") as error:
        load_results(folder)
    assert "\n" not in str(error.value)


def test_an_edited_evaluation_is_rejected_and_an_older_one_is_not(folder):
    path = folder / "evaluation.json"
    write_record(read_evaluation(RESULTS / "evaluations" / "champion_cpu.json"), path)
    assert len(load_results(folder).evaluations) == 1
    path.write_text(path.read_text().replace('"accuracy": 0.9', '"accuracy": 0.99', 1))
    with pytest.raises(UserError, match=r"evaluation.json .* was edited$"):
        load_results(folder)
    path.write_text(re.sub(r'"digest": "\w+"', '"digest": null', path.read_text()))
    assert len(load_results(folder).evaluations) == 1


def test_a_record_of_an_unknown_architecture_gives_one_line(folder, record):
    path = folder / "other.json"
    write_record(record, path)
    path.write_text(path.read_text().replace(f'"arch": "{record.arch}"', '"arch": "a_net"'))
    reason = "other.json is not a valid record: arch must be one of base_1m, .*, got 'a_net'$"
    with pytest.raises(UserError, match=reason):
        load_results(folder)


def test_the_records_of_this_repository_are_whole():
    assert load_results(RESULTS).records
