"""Mutate the maths, count the mutants that the tests notice, and record the others.

pip install mutmut==3.8.1
python tests/mutation.py --output experiments/results/trust/mutation.json

A mutant is a module with one change by mutmut's operators: another number, operator or constant, a
string with XX around it, an argument that is None or missing. A test notices it if the test fails
or takes too long. Not mutated: docstrings, annotations, decorators, errors, assertions and log
messages.
Reasons for survivors are written into the record by hand; the next run keeps them.
"""

import argparse
import ast
import gc
import importlib
import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.machinery import SourceFileLoader
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
import coverage
import pytest
from mutants import Mutant, mutants_of

ROOT = Path(__file__).parents[1]
SECONDS = 20  # limit for a mutant, plus the time of its tests without a mutation
#: imported once, before the modules are mutated
PACKAGES = "lightning.pytorch torchmetrics torchvision scipy.stats pydantic jsonargparse"
#: arguments of pytest, without two slow tests
QUIET = (
    *("-q", "-p", "no:cacheprovider", "-m", "not trust and not gpu"),
    *("-k", "not compiled_again and not overflow_of_sams"),
)
#: modules, or one function of a module
MODULES = """
    lightning_modules/losses.py lightning_modules/distillation.py lightning_modules/classifier.py
    lightning_modules/metrics.py lightning_modules/optimizers.py lightning_modules/prediction.py
    lightning_modules/sharpness.py lightning_modules/muon.py datamodules/mixing.py
    datamodules/tensor_loader.py:stratified_split
    callbacks/ema.py callbacks/swa.py callbacks/lookahead.py
    experiments/claims/seed_statistics.py experiments/claims/verdicts.py
    experiments/claims/claimed.py experiments/claims/measures.py experiments/claims/estimates.py
    experiments/inference/analysis.py experiments/inference/strategies.py
"""
#: module -> names of its tests, if they differ from the module's name. These tests run the module
#: in their own process. A mutant outside of functions needs a new import: only the first file runs.
TESTS = {
    "classifier": "classifier captured_step distillation sharpness",
    "metrics": "classifier",
    "optimizers": "optimizers muon classifier speed_resnet",
    "tensor_loader": "cifar10",
    "verdicts": "claims seed_statistics",
    "claimed": "suites claims",
    "measures": "claims suites",
    "estimates": "claims",
}


def in_child(
    work: Callable[[], object], seconds: float = 600, quiet: bool = True
) -> tuple[str, Any]:
    """Call in a forked process; return "survived" and the result, "killed" or "timeout"."""
    read, write = os.pipe()
    if not (child := os.fork()):
        for stream in range(3) if quiet else ():
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends the process
        try:
            with os.fdopen(write, "wb") as pipe:
                pipe.write(pickle.dumps(work()))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return "timeout", None
    return ("killed", None) if status else ("survived", pickle.loads(answer))


class Mutate:
    """Runs the tests of each mutant instead of all tests; a plugin of pytest."""

    def __init__(self, path: Path, mutants: list[Mutant]) -> None:
        self.path, self.mutants = path, mutants
        self.endings: list[str | None] = []  # None for code outside of functions

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        ending, measured = in_child(lambda: self.measure(list(items.values())))
        assert ending == "survived", "a test fails without a mutation"
        lines, seconds = measured
        tree = ast.parse(self.path.read_text())
        every = (x for x in gc.get_objects() if type(x) is FunctionType)
        functions = [x for x in every if x.__code__.co_filename == str(self.path)]
        for mutant in self.mutants:
            name = function_at(tree, mutant.line)
            new = find_code(compile(mutant.source, self.path, "exec"), name)
            old = [x for x in functions if x.__code__.co_qualname == name]
            if not new or not old:
                self.endings.append(None)
                continue
            names = {x for line in statement_at(tree, mutant.line) for x in lines.get(line, [])}
            chosen = [items[x] for x in sorted(names & set(items), key=seconds.__getitem__)]
            limit = SECONDS + sum(seconds[x.nodeid] for x in chosen)
            work = partial(self.run, chosen, old, new)
            self.endings.append(in_child(work, limit)[0] if chosen else "survived")
        return True

    def measure(self, items: list[pytest.Item]) -> tuple[dict[int, list[str]], dict[str, float]]:
        """Return the tests of each line, and the seconds of each test."""
        seconds, cover = {}, coverage.Coverage(data_file=None, include=[str(self.path)])
        cover.start()
        for item in items:
            began = time.monotonic()
            cover.switch_context(item.nodeid)
            run_tests([item])
            seconds[item.nodeid] = time.monotonic() - began
        cover.stop()
        return cover.get_data().contexts_by_lineno(str(self.path)), seconds

    @staticmethod
    def run(items: list[pytest.Item], functions: list[FunctionType], code: CodeType) -> None:
        for function in functions:
            function.__code__ = code
        run_tests(items)


def run_tests(items: list[pytest.Item]) -> None:
    """Run tests; raise AssertionError at the first failure."""
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        assert not item.session.testsfailed


def function_at(tree: ast.AST, line: int) -> str:
    """Return the qualified name of the function with this line, or "" outside of functions."""
    for x in getattr(tree, "body", []):
        if isinstance(x, ast.ClassDef) and x.lineno <= line <= (x.end_lineno or 0):
            return f"{x.name}.{function_at(x, line)}"
        if isinstance(x, ast.FunctionDef) and x.body[0].lineno <= line <= (x.end_lineno or 0):
            return x.name
    return ""


def statement_at(tree: ast.AST, line: int) -> range:
    """Return the lines of the smallest statement, without the block under it."""
    spans = []
    for x in ast.walk(tree):
        if isinstance(x, ast.stmt):
            body = getattr(x, "body", None)
            spans.append(range(x.lineno, body[0].lineno if body else (x.end_lineno or 0) + 1))
    return min((x for x in spans if line in x), key=len, default=range(line, line + 1))


def find_code(code: CodeType, name: str) -> CodeType | None:
    """Return a function's code within the code of its module."""
    if code.co_qualname == name:
        return code
    inner = (find_code(x, name) for x in code.co_consts if isinstance(x, CodeType))
    return next((x for x in inner if x), None)


def in_module(path: Path, mutant: Mutant, tests: list[str]) -> None:
    """Import the mutated module, and run the first file of its tests."""
    get_code = SourceFileLoader.get_code

    def mutated(loader: SourceFileLoader, name: str) -> CodeType | None:
        if loader.path == str(path):
            return compile(mutant.source, path, "exec")
        return get_code(loader, name)

    # Only in this forked process.
    setattr(SourceFileLoader, "get_code", mutated)  # noqa: B010 (mypy rejects the assignment)
    assert pytest.main(["-x", *QUIET, tests[0]]) == 0


def run(name: str, known: list[dict[str, Any]] | None) -> tuple[int, list[tuple[Mutant, str]]]:
    """Return the number of mutants of a module and their endings; only `known` ones, if given."""
    file, _, function = name.partition(":")
    path, folder = ROOT / file, ROOT / "tests" / Path(file).parts[0]
    stems = TESTS.get(path.stem, path.stem).split()
    tests = [str(folder / f"test_{stem}.py") for stem in stems]
    tree = ast.parse(path.read_text())
    mutants = [x for x in mutants_of(path) if not function or function_at(tree, x.line) == function]
    if known is not None:
        keys = {(x["before"], x["after"]) for x in known}
        mutants = [x for x in mutants if (x.before, x.after) in keys]
    plugin = Mutate(path, mutants)

    def work() -> tuple[int, list[str | None]]:
        return int(pytest.main([*QUIET, *tests], plugins=[plugin])), plugin.endings

    _, (code, endings) = in_child(work, 7200, quiet=False)
    assert len(endings) == len(mutants), f"pytest ended with {code}"
    for i, mutant in enumerate(mutants):
        if endings[i] is None:
            endings[i] = in_child(lambda x=mutant: in_module(path, x, tests), 90)[0]
    return len(mutants), list(zip(mutants, endings, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the mutants that the tests notice.")
    parser.add_argument("modules", nargs="*", help="by default all")
    parser.add_argument("--output", type=Path, required=True, help="the record to write")
    parser.add_argument("--survivors", action="store_true", help="try the recorded survivors only")
    flags = parser.parse_args()
    for package in PACKAGES.split():
        importlib.import_module(package)
    record = json.loads(flags.output.read_text()) if flags.output.exists() else {"modules": {}}
    for name in flags.modules or MODULES.split():
        entry = record["modules"].setdefault(name, {"mutants": 0, "survivors": []})
        began, old = time.monotonic(), entry["survivors"]
        count, endings = run(name, old if flags.survivors else None)
        reasons = {(x["before"], x["after"]): x for x in old}
        unknown = {"equivalent": False, "reason": ""}
        survivors = [
            unknown
            | reasons.get((x.before, x.after), {})
            | dict(zip(x._fields[:3], x, strict=False))
            for x, ending in endings
            if ending == "survived"
        ]
        mutants = entry["mutants"] if flags.survivors else count
        equivalent = sum(x["equivalent"] for x in survivors)
        record["modules"][name] = {
            "mutants": mutants,
            "noticed": mutants - len(survivors),
            "equivalent": equivalent,
            "unnoticed": len(survivors) - equivalent,
            "seconds": round(time.monotonic() - began, 1),
            "survivors": survivors,
        }
        print(name, {x: y for x, y in record["modules"][name].items() if x != "survivors"})
        flags.output.write_text(json.dumps(facts() | summary(record["modules"]), indent=2) + "\n")


def facts() -> dict[str, Any]:
    """Return the provenance of the record."""

    def read() -> dict[str, Any]:
        found = importlib.import_module("experiments.records.provenance").origin()
        found["versions"]["mutmut"] = version("mutmut")
        return found

    # In a child, because this process must not import the modules before they are mutated.
    _, found = in_child(read)
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": " ".join(["python", *sys.argv])} | found | {"finished": finished}


def summary(modules: dict[str, Any]) -> dict[str, Any]:
    """Return the totals, and the noticed share of the mutants that are not equivalent."""
    names = ("mutants", "noticed", "equivalent", "unnoticed")
    totals = {x: sum(entry[x] for entry in modules.values()) for x in names}
    score = totals["noticed"] / (totals["mutants"] - totals["equivalent"])
    return totals | {"score": round(score, 4), "modules": modules}


if __name__ == "__main__":
    main()
