"""Parsers and commands with made-up input: each input is read, or rejected in one line."""

import importlib
import json
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.claims.claimed import read_claimed
from experiments.claims.measures import Measure
from experiments.claims.suites import load_suite
from experiments.console import command
from experiments.presets import EXPERIMENTS
from experiments.records.record import read_any
from experiments.training.configuration import resolve_config
from experiments.training.launch import read_flags

ROOT = Path(__file__).parent.parent
RECORD = json.loads((ROOT / "experiments" / "results" / "champion_cpu.json").read_text())
SUITE = yaml.safe_load((ROOT / "experiments" / "suites" / "sam_resnet_table1.yaml").read_text())
COMMANDS = ("benchmark", "dashboard", "evaluate", "export", "import_weights", "predict")
COMMANDS += ("report", "reproduce", "screen")
FLAGS = ("--help=x", "--output", "--only", "--chosen", "--shift", "--images", "--seeds", "--scale")
FLAGS += ("--rows", "--weights", "--dtype", "--root", "--precision", "--strategies", "--table")

# The same inputs on each machine, however slow it is.
made_up = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=150,
    suppress_health_check=list(HealthCheck),
)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars, lambda x: st.lists(x, max_size=4) | st.dictionaries(texts, x, max_size=4), max_leaves=8
)


def read_or_reject(read: Callable[[], object]) -> None:
    """Call a reader as a command does; fail for a traceback and for several lines."""
    with redirect_stderr(StringIO()) as printed, suppress(SystemExit):
        command(lambda: read() and None)()
    assert printed.getvalue().count("\n") <= 1


@st.composite
def changed(draw: st.DrawFn, sound: dict[str, Any]) -> dict[str, Any]:
    """A sound mapping with another value at one of its keys, or at a key of a value."""
    key = draw(st.sampled_from(sorted(sound)) | texts)
    inner = sound.get(key)
    if isinstance(inner, dict) and inner and draw(st.booleans()):
        return sound | {key: draw(changed(inner))}
    return sound | {key: draw(values)}


@made_up
@given(values | changed(RECORD))
def test_a_record_is_read_or_rejected(tmp_path_factory: Any, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "record.json"
    path.write_text(json.dumps(value), "utf-8")
    read_or_reject(lambda: read_any(path))


@settings(made_up, max_examples=60)  # a sound suite takes 0.1 s
@given(values | changed(SUITE))
def test_a_suite_is_read_or_rejected(tmp_path_factory: Any, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "suite.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True), "utf-8")
    read_or_reject(lambda: load_suite(path))


@made_up
@given(values)
def test_settings_are_read_or_rejected(tmp_path_factory: Any, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "settings.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True), "utf-8")
    read_or_reject(lambda: read_flags(["--arch", "resnet", "--config", str(path)]))


@made_up
@given(texts | st.from_regex(r"[a-c0-9.()+*/ \[\]-]{1,20}", fullmatch=True))
def test_a_measure_is_arithmetic_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        measure = Measure(text)
        numbers = dict.fromkeys(measure.terms, 2.0)
        with suppress(ZeroDivisionError):
            assert isinstance(measure(numbers), float)


@made_up
@given(texts | st.from_regex(r"[<>]? ?-?[0-9.]{1,6}( to [0-9.]{1,6})?", fullmatch=True))
def test_a_claimed_value_is_an_interval_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        claimed = read_claimed(text)
        assert claimed.low < claimed.high


@made_up
@given(st.integers(0, 999_999), st.integers(0, 6))
def test_a_claimed_number_contains_all_numbers_that_round_to_it(number: int, digits: int) -> None:
    text = f"{number / 10**digits:.{digits}f}"
    claimed = read_claimed(text)
    half = 0.5 / 10**digits
    assert claimed.low == pytest.approx(float(text) - half)
    assert claimed.high == pytest.approx(float(text) + half)


@pytest.mark.parametrize("name", COMMANDS)
@made_up
@given(argv=st.lists(st.sampled_from(FLAGS) | texts, max_size=5))
def test_a_command_line_is_read_or_rejected(name: str, argv: list[str]) -> None:
    module = importlib.import_module(f"experiments.{name}")
    read_or_reject(lambda: module.read_arguments(argv))


@settings(made_up, max_examples=60)
@given(
    st.sampled_from(sorted(EXPERIMENTS)),
    st.sampled_from(["model.lr", "model.optimizer", "data.cutout", "trainer.max_epochs", "ema"]),
    texts | scalars.map(str),
)
def test_a_flag_of_run_py_is_read_or_rejected(arch: str, flag: str, value: str) -> None:
    read_or_reject(lambda: resolve_config([f"--arch={arch}", f"--{flag}={value}"]))
