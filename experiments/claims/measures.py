"""The measure of a claim: plain arithmetic of a metric of rows, such as `se - baseline`."""

import ast
import operator
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from experiments.console import near
from experiments.inference.strategies import PLAIN, STRATEGIES

Metric = Literal[
    "test accuracy",
    "val accuracy",
    "train accuracy",
    "sd of val accuracy",
    "best epoch",
    "first break",
    "second break",
    "late fluctuation",
    "generalisation gap",
    "training seconds",
    "fitted temperature",
    "best number of views",
    "parameters",
    "operations",
    "arithmetic",
]
#: metrics that need no training
COUNTED = ("parameters", "operations", "arithmetic")
#: metrics that need `evaluate.py`
FROM_EVALUATION = ("fitted temperature", "best number of views")
#: metrics that a shorter training can judge too
SCALE_FREE = ("first break", "second break", "best number of views")
#: strategies that a run's record contains; all others need `evaluate.py`
SINGLE_VIEWS = {PLAIN: "raw", "ema": "ema", "swa": "swa"}
#: metrics that each strategy has; the best epoch belongs to weights, and all others to a run
OF_STRATEGIES = ("test accuracy", "val accuracy", "sd of val accuracy", "fitted temperature")

OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Term:
    """One row in a measure: `se`, or with a strategy of prediction `final[ema+tta]`."""

    row: str
    strategy: str = PLAIN


@dataclass(frozen=True)
class Measure:
    """Arithmetic of numbers and terms: + - * / and parentheses; else ValueError."""

    text: str

    def __post_init__(self) -> None:
        for term in self.terms:
            if term.strategy not in STRATEGIES:
                raise ValueError(
                    f"names the unknown strategy {term.strategy} (known: {', '.join(STRATEGIES)})"
                )

    @cached_property
    def _tree(self) -> ast.expr:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # the error says it too
                return ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # also of deep nesting
            raise ValueError(f"must be arithmetic of rows, got {self.text!r}") from None

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The different terms in order of their first appearance."""
        return tuple(dict.fromkeys(_terms(self._tree)))

    @cached_property
    def pair(self) -> tuple[str, Term, Term] | None:
        """The operator and both sides of a difference or ratio of two terms; else None."""
        tree = self._tree
        if not isinstance(tree, ast.BinOp) or not isinstance(tree.op, ast.Sub | ast.Div):
            return None
        left, right = _term(tree.left), _term(tree.right)
        symbol = "-" if isinstance(tree.op, ast.Sub) else "/"
        return (symbol, left, right) if left and right else None

    def __call__(self, values: Mapping[Term, float]) -> float:
        """The measure for these values of its terms; may raise ZeroDivisionError."""
        return _value(self._tree, values)


def _term(node: ast.expr) -> Term | None:
    if isinstance(node, ast.Name):
        return Term(node.id)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        # Python parses `ema+tta` and `six-view` as sums and differences: unparse them.
        return Term(node.value.id, ast.unparse(node.slice).replace(" ", ""))
    return None


def _terms(node: ast.expr) -> Iterator[Term]:
    if term := _term(node):
        yield term
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        yield from _terms(node.left)
        yield from _terms(node.right)
    elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
        raise ValueError(f"must be arithmetic of rows, got {ast.unparse(node)}")


def _value(node: ast.expr, values: Mapping[Term, float]) -> float:
    if term := _term(node):
        return values[term]
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](_value(node.left, values), _value(node.right, values))
    assert isinstance(node, ast.Constant)
    return float(node.value)  # type: ignore[arg-type]


def check_measure(measure: Measure, metric: Metric, rows: Collection[str]) -> None:
    """Raise ValueError if a measure and its metric do not fit, or a row is unknown."""
    if metric == "arithmetic" and measure.terms:
        raise ValueError(f"must be numbers alone for arithmetic, got {measure.text}")
    known = list(SINGLE_VIEWS) if metric == "best epoch" else [PLAIN]
    if metric in OF_STRATEGIES:
        known = list(STRATEGIES)
    for term in measure.terms:
        if term.row not in rows:
            hint = near(term.row, list(rows))
            raise ValueError(f"names {term.row}, which is not a row of the suite{hint}")
        if term.strategy not in known:
            raise ValueError(f"names {term.strategy}, which has no {metric}")
    if metric.startswith("sd of") and not (measure.pair and measure.pair[0] == "/"):
        raise ValueError(f"must be one row over another for {metric}, got {measure.text}")
    if metric != "arithmetic" and not measure.terms:
        raise ValueError(f"names no row, got {measure.text}")
