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
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.machinery import SourceFileLoader
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
import coverage
import libcst as cst
import pytest
import torch
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).parents[1]
SECONDS = 20  # for one mutant, and the time of its tests without a mutation
#: imported once, before the modules are mutated
PACKAGES = "lightning.pytorch torchmetrics torchvision scipy.stats pydantic jsonargparse"
MESSAGES = {"rank_zero_info", "rank_zero_warn", "print", "track"}
#: arguments of pytest; two tests of many seconds are left out
QUIET = (
    *("-q", "-p", "no:cacheprovider", "-m", "not trust and not gpu"),
    *("-k", "not compiled_again and not overflow_of_sams"),
)
L, D, C, X = "lightning_modules", "datamodules", "callbacks", "experiments"
#: module, or one of its functions -> tests that run it within their own process; only the first
#: file is run for a mutant outside of functions, because it needs a new import
TESTS: dict[str, list[str]] = {
    f"{L}/losses.py": [f"{L}/test_losses.py"],
    f"{L}/distillation.py": [f"{L}/test_distillation.py"],
    f"{L}/classifier.py": [
        f"{L}/test_classifier.py",
        f"{L}/test_captured_step.py",
        f"{L}/test_distillation.py",
        f"{L}/test_sharpness.py",
    ],
    f"{L}/metrics.py": [f"{L}/test_classifier.py"],
    f"{L}/optimizers.py": [
        f"{L}/test_optimizers.py",
        f"{L}/test_muon.py",
        f"{L}/test_classifier.py",
        f"{L}/test_speed_resnet.py",
    ],
    f"{L}/prediction.py": [f"{L}/test_prediction.py"],
    f"{L}/sharpness.py": [f"{L}/test_sharpness.py"],
    f"{L}/muon.py": [f"{L}/test_muon.py"],
    f"{D}/mixing.py": [f"{D}/test_mixing.py"],
    f"{D}/cifar10.py:stratified_split": [f"{D}/test_cifar10.py"],
    f"{C}/ema.py": [f"{C}/test_ema.py"],
    f"{C}/swa.py": [f"{C}/test_swa.py"],
    f"{C}/lookahead.py": [f"{C}/test_lookahead.py"],
    f"{X}/claims/seed_statistics.py": [f"{X}/test_seed_statistics.py"],
    f"{X}/claims/verdicts.py": [f"{X}/test_seed_statistics.py"],
    f"{X}/claims/claimed.py": [f"{X}/test_suites.py", f"{X}/test_claims.py"],
    f"{X}/claims/measures.py": [f"{X}/test_suites.py", f"{X}/test_claims.py"],
    f"{X}/claims/estimates.py": [f"{X}/test_claims.py"],
    f"{X}/claims/matching.py": [f"{X}/test_matching.py"],
    f"{X}/inference/analysis.py": [f"{X}/test_analysis.py"],
    f"{X}/inference/strategies.py": [f"{X}/test_strategies.py"],
}


class Mutant(NamedTuple):
    line: int
    before: str  # the changed lines
    after: str
    source: str  # of the whole module


class Finder(cst.CSTVisitor):
    """Collects pairs of a node and its mutation."""

    def __init__(self) -> None:
        self.found: list[tuple[cst.CSTNode, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        match node:
            case (
                cst.Annotation() | cst.Decorator() | cst.Raise() | cst.Assert()
                | cst.Import() | cst.ImportFrom() | cst.If(test=cst.Name("TYPE_CHECKING"))
                | cst.Assign(value=cst.Subscript(value=cst.Name("Literal")))
                | cst.Expr(value=cst.SimpleString() | cst.ConcatenatedString())
            ):  # fmt: skip
                return False
            case cst.Call(func=cst.Name(name)) if name in MESSAGES:
                return False
            case cst.Call(func=cst.Name("cast")):  # without an effect
                return True
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                found = list(operator(node))
                self.found += [(node, x) for x in found[: 1 if kind is cst.BaseString else None]]
        return True


def mutants_of(path: Path) -> Iterator[Mutant]:
    wrapper = MetadataWrapper(cst.parse_module(path.read_text()))
    positions, finder = wrapper.resolve(PositionProvider), Finder()
    wrapper.module.visit(finder)
    for old, new in finder.found:
        source = wrapper.module.deep_replace(old, new).code  # type: ignore[attr-defined]
        a, b = path.read_text().splitlines(), source.splitlines()
        while a and b and a[0] == b[0]:
            a, b = a[1:], b[1:]
        while a and b and a[-1] == b[-1]:
            a, b = a[:-1], b[:-1]
        texts = (" ".join(x.strip() for x in lines) for lines in (a, b))
        yield Mutant(positions[old].start.line, *texts, source)


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
        functions = [x for x in gc.get_objects() if type(x) is FunctionType]
        for mutant in self.mutants:
            name = function_at(tree, mutant.line)
            new = find_code(compile(mutant.source, self.path, "exec"), name)
            old = [x for x in functions if is_code(x.__code__, self.path, name)]
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
    """Run tests until the first failure, which is an AssertionError."""
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        assert not item.session.testsfailed


def function_at(tree: ast.AST, line: int) -> str:
    """Return the qualified name of the function of a module or class that has the line."""
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


def is_code(code: CodeType, path: Path, name: str) -> bool:
    return code.co_filename == str(path) and code.co_qualname == name


def find_code(code: CodeType, name: str) -> CodeType | None:
    """Return a function's code within the code of its module."""
    if code.co_qualname == name:
        return code
    inner = (find_code(x, name) for x in code.co_consts if isinstance(x, CodeType))
    return next((x for x in inner if x), None)


def in_functions(path: Path, mutants: list[Mutant], tests: list[str]) -> list[str | None]:
    plugin = Mutate(path, mutants)
    pytest.main([*QUIET, *tests], plugins=[plugin])
    return plugin.endings


def in_module(path: Path, mutant: Mutant, tests: list[str]) -> None:
    """Import the mutated module, and run the first file of its tests."""
    get_code = SourceFileLoader.get_code

    def mutated(loader: SourceFileLoader, name: str) -> CodeType | None:
        if loader.path == str(path):
            return compile(mutant.source, path, "exec")
        return get_code(loader, name)

    SourceFileLoader.get_code = mutated  # type: ignore[method-assign,assignment]
    assert pytest.main(["-x", *QUIET, tests[0]]) == 0


def run(name: str, known: list[dict[str, Any]] | None) -> tuple[int, list[tuple[Mutant, str]]]:
    """Return the number of mutants of a module and their endings; only `known` ones, if given."""
    file, _, function = name.partition(":")
    path, tests = ROOT / file, [str(ROOT / "tests" / x) for x in TESTS[name]]
    tree = ast.parse(path.read_text())
    mutants = [x for x in mutants_of(path) if not function or function_at(tree, x.line) == function]
    if known is not None:
        keys = {(x["before"], x["after"]) for x in known}
        mutants = [x for x in mutants if (x.before, x.after) in keys]
    _, endings = in_child(lambda: in_functions(path, mutants, tests), 7200, quiet=False)
    assert len(endings) == len(mutants)
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
    for name in flags.modules or TESTS:
        entry = record["modules"].setdefault(name, {"mutants": 0, "survivors": []})
        began, old = time.monotonic(), entry["survivors"]
        count, endings = run(name, old if flags.survivors else None)
        reasons = {(x["before"], x["after"]): (x["equivalent"], x["reason"]) for x in old}
        survivors = []
        for mutant, ending in endings:
            if ending == "survived":
                equivalent, reason = reasons.get((mutant.before, mutant.after), (False, ""))
                survivors.append(
                    {"line": mutant.line, "before": mutant.before, "after": mutant.after,
                     "equivalent": equivalent, "reason": reason}
                )  # fmt: skip
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
        provenance = importlib.import_module("experiments.records.provenance")

        commit, dirty = provenance.git_state()
        packages = provenance.versions() | {"mutmut": version("mutmut")}
        device = provenance.describe_device(torch.device("cpu"))
        return {"commit": commit, "dirty": dirty, "versions": packages, "device": device}

    # In a child, because this process must not import the modules before they are mutated.
    _, found = in_child(read)
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": " ".join(["python", *sys.argv])} | found | {"finished": finished}


def summary(modules: dict[str, Any]) -> dict[str, Any]:
    """Return the totals, and the share of noticed mutants among those that change behaviour."""
    names = ("mutants", "noticed", "equivalent", "unnoticed")
    totals = {x: sum(entry[x] for entry in modules.values()) for x in names}
    score = totals["noticed"] / (totals["mutants"] - totals["equivalent"])
    return totals | {"score": round(score, 4), "modules": modules}


if __name__ == "__main__":
    main()
