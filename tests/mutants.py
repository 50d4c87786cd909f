"""The mutants of a module, by mutmut's operators."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

MESSAGES = {"rank_zero_info", "rank_zero_warn", "print", "track"}


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
            case cst.Call(func=cst.Name("cast")):  # has no effect at run time
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
        source = wrapper.module.deep_replace(old, new).code  # type: ignore[attr-defined]  # libcst annotates a node
        a, b = path.read_text().splitlines(), source.splitlines()
        while a and b and a[0] == b[0]:
            a, b = a[1:], b[1:]
        while a and b and a[-1] == b[-1]:
            a, b = a[:-1], b[:-1]
        texts = (" ".join(x.strip() for x in lines) for lines in (a, b))
        yield Mutant(positions[old].start.line, *texts, source)
