import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import console
from experiments.console import near
from experiments.presets import EXPERIMENTS
from experiments.records.integrity import seal
from experiments.training.launch import Launch, claim_folder, read_launch
from experiments.training.run_folder import is_locked, keep_previous, lock_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Create run folders in `runs` of the working directory, from the oldest to the newest."""
    monkeypatch.chdir(tmp_path)
    ages = iter(range(100))

    def make(name, arch="sam_resnet", files=("last.ckpt",)):
        folder = Path("runs", name)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"arch: {arch}\n")
        for file in files:
            with zipfile.ZipFile(folder / file, "w"):  # a valid archive, like a checkpoint
                pass
            os.utime(folder / file, times=(0, next(ages)))

    return make


@pytest.fixture
def mistake(capsys):
    """Assert that the arguments end with exit code 2; return the message after `error: `."""

    def mistake(*argv):
        with pytest.raises(SystemExit) as end:
            console.command(lambda: read_launch(list(argv)))()
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return mistake


def test_a_mistyped_architecture_is_rejected_before_torch_is_imported():
    command = [sys.executable, "-X", "importtime", "experiments/run.py", "--arch", "sam_resnt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    imports, answer = [], []
    for line in done.stderr.splitlines():
        (imports if line.startswith("import time:") else answer).append(line)
    assert done.returncode == 2
    (line,) = answer
    assert re.match(r"error: --arch sam_resnt is unknown \(did you mean sam_resnet or ", line)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in imports}
    assert "argparse" in imported
    assert not imported & {"torch", "lightning", "jsonargparse", "matplotlib", "wandb"}


@pytest.mark.parametrize(
    ("name", "matches"),
    [
        ("sam_resnt", "sam_resnet or"),
        ("wideresnet", "wide_resnet or"),
        ("enhanced_resnet", "enhanced_efficient_resnet or"),
    ],
)
def test_the_nearest_architecture_comes_first(name, matches):
    assert near(name, list(EXPERIMENTS)).startswith(f" (did you mean {matches} ")


def test_a_name_similar_to_no_other_gets_no_hint(mistake):
    line = mistake("--arch", "transformer9000")
    assert line == f"--arch transformer9000 is unknown: name one of {', '.join(EXPERIMENTS)}"


def test_without_an_architecture_all_are_named(mistake):
    assert mistake() == f"--arch is missing: name one of {', '.join(EXPERIMENTS)}"


def test_an_architecture_is_not_abbreviated(mistake):
    assert "--arch is missing" in mistake("--arc", "sam_resnet")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_without_an_architecture_lists_them(flag, capsys):
    with pytest.raises(SystemExit) as end:
        read_launch([flag])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in EXPERIMENTS)
    assert "run.py --arch NAME --help" in out


def test_a_flag_without_its_value_is_one_line(mistake):
    assert mistake("--arch") == "argument --arch: expected one argument"


def test_a_run_is_named_after_its_architecture_and_the_time():
    launch = read_launch(["--arch", "sam_resnet"])
    assert launch.folder.parent == Path("runs")
    assert re.fullmatch(r"sam_resnet-\d{8}-\d{6}", launch.folder.name)
    assert launch.checkpoint is None
    assert not launch.resumes
    assert not launch.quick


def test_a_generated_name_in_use_gets_a_number(tmp_path):
    launch = read_launch(["--arch=sam_resnet", f"--output={tmp_path}"])
    claimed = [claim_folder(launch) for _ in range(3)]
    names = [launch.folder.name, f"{launch.folder.name}-2", f"{launch.folder.name}-3"]
    assert [own.folder.name for own, _ in claimed] == names
    assert all(is_locked(tmp_path / name) for name in names)


def test_a_folder_is_in_use_until_its_process_ends(mistake, tmp_path):
    program = (
        "import sys, time; from experiments.training.launch import claim_folder, read_launch\n"
        "own = claim_folder(read_launch(sys.argv[1:])); print('locked', flush=True); time.sleep(99)"
    )
    argv = ["--arch=sam_resnet", "--name=mine", f"--output={tmp_path}"]
    command = [sys.executable, "-c", program, *argv]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        assert mistake(*argv) == (
            f"{tmp_path / 'mine'} is in use: choose another --name, or wait until the process that "
            "works on it has ended"
        )
        process.kill()
    assert read_launch(argv).folder == tmp_path / "mine"


def test_only_the_first_process_asks_whether_a_folder_is_in_use(tmp_path, monkeypatch):
    argv = ["--arch=sam_resnet", "--name=mine", f"--output={tmp_path}"]
    _, lock = claim_folder(read_launch(argv))
    monkeypatch.setenv("RANK", "1")
    assert read_launch(argv).folder == tmp_path / "mine"
    lock.close()


@pytest.mark.parametrize("resumes", [False, True])
def test_a_start_without_a_checkpoint_ignores_the_earlier_launch(runs, resumes):
    earlier = ("commands.txt", "wandb_id.txt", "best.ckpt", "best_ema.ckpt")
    runs("mine", files=(*earlier, "last.ckpt"))
    launch = Launch("resnet", Path("runs/mine"), Path("runs/mine/last.ckpt"), False, [])
    _, lock = claim_folder(launch if resumes else replace(launch, checkpoint=None))
    assert all((launch.folder / name).exists() == resumes for name in earlier)
    lock.close()


def test_a_name_that_no_file_system_allows_gives_one_line(mistake, tmp_path):
    line = mistake("--arch=resnet", f"--output={tmp_path}", f"--name={'a' * 300}")
    assert line.startswith(f"--output {tmp_path} cannot be used: ")


def test_unknown_flags_are_left_to_the_full_parser():
    argv = ["--arch=resnet", "--name=a", "--output=b", "--quick", "--model.lr", "0.1", "--typo"]
    launch = read_launch(argv)
    assert launch.arguments == argv
    assert launch.folder == Path("b/a")
    assert launch.quick


def test_the_architecture_may_come_from_a_config(tmp_path):
    config = tmp_path / "saved.yaml"
    config.write_text("arch: wide_resnet\nmodel:\n  lr: 0.2\n")
    assert read_launch(["--config", str(config)]).arch == "wide_resnet"
    assert read_launch(["--config", str(config), "--arch", "resnet"]).arch == "resnet"
    assert read_launch(["-c", str(config)]).arch == "wide_resnet"


def test_the_last_config_decides_a_launch(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(f"arch: resnet\nname: a\noutput: {tmp_path}\nquick: true\n")
    second.write_text("name: b\n")
    argv = [f"--config={first}", "-c", str(second)]
    launch = read_launch(argv)
    assert (launch.arch, launch.folder, launch.quick) == ("resnet", tmp_path / "b", True)
    assert read_launch([*argv, "--name=c", "--output=d"]).folder == Path("d/c")


def test_a_config_can_name_the_checkpoint(runs, tmp_path):
    runs("mine")
    config = tmp_path / "resume.yaml"
    config.write_text("arch: sam_resnet\nckpt_path: last\n")
    assert read_launch([f"--config={config}"]).checkpoint == Path("runs/mine/last.ckpt")


def test_a_runs_own_config_begins_another_run(runs):
    runs("mine", files=("last.ckpt", "commands.txt"))
    with Path("runs/mine/config.yaml").open("a") as file:
        file.write("name: mine\nckpt_path: last\n")
    launch = read_launch(["--config", "runs/mine/config.yaml"])
    assert launch.folder.name.startswith("sam_resnet-")
    assert launch.checkpoint is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: .*No such file"),
        (b"", "must be a mapping as --print_config writes it, got None"),
        (b"- sam_resnet\n", r"must be a mapping as --print_config writes it, got \['sam_resnet'\]"),
        (b"model: [\n", "cannot be read: while parsing"),
        (
            b'{"name": "a", "config": {"seed": 0}}',
            "must not have the setting config: .*config.yaml",
        ),
        (b"model:\n", "must have settings below model, such as lr: 0.1, or no model, got None"),
        (b"data: 3\n", "must have settings below data, such as batch_size: 128, .* got 3"),
        (b"trainer: []\n", "must have settings below trainer, .* got "),
        (b"distill: [1]\n", "must have settings below distill, .* got "),
        (b"\xff\xfe\x00", "cannot be read: "),
        (b"model:\n  lr: 1\n", "--arch is missing"),
        (b"arch: sam_resnt\n", r"--arch sam_resnt is unknown \(did you mean sam_resnet"),
        (b"arch: 7\n", "--arch 7 is unknown: name one of"),
    ],
)
def test_a_config_without_settings_or_architecture_is_one_line(tmp_path, mistake, content, reason):
    config = tmp_path / "wrong.yaml"
    if content is not None:
        config.write_bytes(content)
    line = mistake("--config", str(config))
    assert re.search(reason, line), line
    assert line.startswith(("--arch", f"--config {config} "))


@pytest.mark.parametrize("file", ["last.ckpt", "result.json"])
def test_a_folder_with_a_run_is_not_overwritten(runs, mistake, file):
    runs("mine", files=(file,))
    line = mistake("--arch", "sam_resnet", "--name", "mine")
    assert line == ("runs/mine contains a run: choose another --name, or add --ckpt_path last")


def test_a_run_that_ended_before_its_first_checkpoint_can_be_started_again(runs):
    runs("mine", files=("metrics.csv",))
    assert read_launch(["--arch", "sam_resnet", "--name", "mine"]).folder == Path("runs/mine")


def test_last_is_the_newest_unfinished_run_of_the_architecture(runs):
    runs("older")
    runs("newer")
    runs("another", arch="wide_resnet")
    runs("finished", files=("last.ckpt", "result.json"))
    launch = read_launch(["--arch", "sam_resnet", "--ckpt_path", "last"])
    assert launch.folder == Path("runs/newer")
    assert launch.checkpoint == Path("runs/newer/last.ckpt")
    assert launch.resumes


def test_last_ignores_runs_in_use_and_runs_without_settings(runs, mistake):
    runs("idle")
    runs("busy")
    runs("torn")
    Path("runs/torn/config.yaml").write_text("arch: [\n")
    argv = ["--arch=sam_resnet", "--ckpt_path=last"]
    locks = [lock_folder(Path("runs/busy"))]
    assert read_launch(argv).folder == Path("runs/idle")
    locks.append(lock_folder(Path("runs/idle")))
    assert mistake(*argv) == (
        "--ckpt_path last: runs holds no unfinished run of sam_resnet that is not in use; "
        "name one with --name"
    )
    for lock in locks:
        lock.close()


def test_last_with_a_name_is_that_run(runs):
    runs("older")
    runs("newer")
    argv = ["--arch", "sam_resnet", "--ckpt_path", "last", "--name", "older", "--data.flip", "0"]
    launch = read_launch(argv)
    assert launch.folder == Path("runs/older")
    # The run's own configuration comes first, so the new flags override it.
    assert launch.arguments == ["--config", "runs/older/config.yaml", *argv]


def test_last_needs_no_architecture_if_the_config_names_it(runs):
    runs("mine", arch="wide_resnet")
    argv = ["--config", "runs/mine/config.yaml", "--ckpt_path", "last"]
    assert read_launch(argv).checkpoint == Path("runs/mine/last.ckpt")


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        ([], "--ckpt_path last: runs holds no unfinished run of resnet; name one with --name"),
        (
            ["--name", "none"],
            "--ckpt_path last: there is no runs/none/last.ckpt to resume from",
        ),
        (
            ["--name", "finished"],
            "--ckpt_path last: runs/finished has finished; its record is result.json there",
        ),
    ],
)
def test_nothing_to_resume_is_one_line(runs, mistake, flags, answer):
    runs("another")
    runs("finished", arch="resnet", files=("last.ckpt", "result.json"))
    assert mistake("--arch", "resnet", "--ckpt_path", "last", *flags) == answer


def test_another_runs_checkpoint_begins_a_new_run(runs):
    runs("old")
    argv = ["--arch", "sam_resnet", "--ckpt_path", "runs/old/last.ckpt", "--name", "new"]
    launch = read_launch(argv)
    assert launch.folder == Path("runs/new")
    assert launch.checkpoint == Path("runs/old/last.ckpt")
    assert not launch.resumes
    assert launch.arguments == argv


@pytest.mark.parametrize("path", ["runs", "nowhere.ckpt"])
def test_a_missing_checkpoint_gives_one_line(runs, mistake, path):
    runs("any")
    line = mistake("--arch", "sam_resnet", "--ckpt_path", path)
    assert line == f"--ckpt_path {path} is not a file"


def damage(path):
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def archive(path, text):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", text * 1_000)


def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(runs, capsys, mistake):
    runs("mine")
    last, previous = (Path("runs/mine", name) for name in ("last.ckpt", "previous.ckpt"))
    argv = ["--arch", "sam_resnet", "--name", "mine", "--ckpt_path", "last"]
    archive(last, "new")
    archive(previous, "old")
    assert read_launch(argv).checkpoint == last
    damage(last)
    assert read_launch(argv).checkpoint == previous
    assert f"{last} is damaged" in (line := capsys.readouterr().err)
    assert line.endswith(f"Continuing from {previous}\n")
    damage(previous)
    line = mistake(*argv)
    assert f"{last} is damaged" in line
    assert f"{previous} is damaged" in line
    previous.unlink()
    assert f"there is no {previous}" in mistake(*argv)


def test_a_damaged_checkpoint_never_replaces_the_previous_one(runs):
    runs("mine")
    last, previous = (Path("runs/mine", name) for name in ("last.ckpt", "previous.ckpt"))
    archive(last, "new")
    damage(last)
    archive(previous, "old")
    sound = previous.read_bytes()
    argv = ["--arch", "sam_resnet", "--name", "mine", "--ckpt_path", "last"]
    launch, lock = claim_folder(read_launch(argv))
    lock.close()
    keep_previous(last)  # as before a newer checkpoint is saved
    assert launch.checkpoint.read_bytes() == previous.read_bytes() == sound
    assert read_launch(argv).checkpoint == last


def test_a_damaged_best_checkpoint_ends_a_resume_before_it_trains(runs, mistake):
    runs("mine")
    best = Path("runs/mine/best_ema.ckpt")
    archive(best, "weights")
    argv = ["--arch", "sam_resnet", "--name", "mine", "--ckpt_path", "last"]
    assert read_launch(argv).resumes
    damage(best)
    line = mistake(*argv)
    assert line.startswith(f"{best} is damaged")
    assert line.endswith("delete it to choose from the remaining epochs")
    best.unlink()
    assert read_launch(argv).resumes


def test_changed_settings_of_a_run_are_found(runs, mistake):
    runs("mine")
    config = Path("runs/mine/config.yaml")
    argv = ["--arch", "sam_resnet", "--name", "mine", "--ckpt_path", "last"]
    sealed = seal("arch: sam_resnet\nseed: 1\n")
    config.write_text(sealed)
    assert read_launch(argv).resumes
    config.write_text(sealed.replace("seed: 1", "seed: 3"))
    assert mistake(*argv).startswith(f"{config} was changed or damaged")
    config.write_bytes(sealed.encode().replace(b"s", b"\xf3", 1))  # invalid UTF-8
    assert mistake(*argv).startswith(f"{config} was changed or damaged")
