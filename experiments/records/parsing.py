"""JSON and YAML files as typed objects; a mistake names the file, the line and the field."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from experiments.console import UserError, near

T = TypeVar("T")

#: of a pydantic class: unknown fields are mistakes
EXACT = ConfigDict(extra="forbid")
#: the keys and indices that lead to a value
Place = tuple[str | int, ...]

#: size of a JSON file
MAX_BYTES = 20_000_000
#: characters of a YAML file: PyYAML reads about 200,000 per second
MAX_YAML = 200_000
#: values in a YAML file; an alias counts with all its values
MAX_VALUES = 20_000
#: plain words for pydantic's types of errors
REASONS = {
    "missing": "is missing",
    "unexpected_keyword_argument": "is unknown",
    "dataclass_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "string_type": "must be a text",
}


def read_json(kind: type[T], path: Path) -> T:
    """The content of a JSON file; UserError if its fields are not `kind`'s."""
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} must have at most {MAX_BYTES:,} bytes")
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        name = "JSON file" if kind is object else kind.__name__.lower()
        raise UserError(f"{path} is not a valid {name}: {_explain(kind, error)[1]}") from None


def check_yaml(text: str) -> None:
    """Raise YAMLError for a text whose aliases or depth need too much memory or time."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MAX_VALUES  # for a node that contains itself
            children = node.value if isinstance(node, yaml.CollectionNode) else []
            if isinstance(node, yaml.MappingNode):
                children = [x for pair in children for x in pair]
            sizes[id(node)] = 1 + sum(size(child) for child in children)
        return sizes[id(node)]

    if len(text) > MAX_YAML:
        raise yaml.YAMLError(f"more than {MAX_YAML:,} characters")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and size(root) > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES:,} values")
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


@dataclass(frozen=True)
class YamlFile:
    """A YAML file that knows the line of each value.

    Numbers remain texts, so that they keep their digits. Only the values below the keys `typed`
    have YAML's types.
    """

    path: Path
    typed: tuple[str, ...] = ()
    _lines: dict[Place, int] = field(default_factory=lambda: {(): 1}, init=False)

    def parse(self, kind: type[T]) -> T:
        """The content; UserError if it does not have exactly the fields of `kind`."""
        try:
            text = self.path.read_text(encoding="utf-8")
            if len(text) > MAX_YAML:
                raise self.mistake((), f"must have at most {MAX_YAML:,} characters")
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            if node is None:
                raise self.mistake((), "is empty")
            return TypeAdapter(kind).validate_python(self._plain(loader, node, (), False))
        except ValidationError as error:
            place, reasons = _explain(kind, error)
            raise self._mistake(place, reasons) from None
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UserError(f"{self.path}, line {line}: {error.problem}") from None
        except RecursionError:
            raise UserError(f"{self.path} is nested too deeply") from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{self.path} cannot be read: {' '.join(str(error).split())}") from None

    def mistake(self, place: Place, reason: str) -> UserError:
        """The error about one value."""
        return self._mistake(place, f"{_name(place)} {reason}".strip())

    def line(self, place: Place) -> int:
        """The line of a value, or of the part of the file that lacks it."""
        return next(
            self._lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in self._lines
        )

    def _mistake(self, place: Place, text: str) -> UserError:
        return UserError(f"{self.path}, line {self.line(place)}: {text}")

    def _plain(self, loader: yaml.SafeLoader, node: yaml.Node, place: Place, typed: bool) -> Any:
        if len(self._lines) > MAX_VALUES:
            problem = f"more than {MAX_VALUES:,} values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if isinstance(node, yaml.SequenceNode):
            items = enumerate(node.value)
            return [self._plain(loader, x, self._at((*place, i), x), typed) for i, x in items]
        if not isinstance(node, yaml.MappingNode):
            return loader.construct_object(node) if typed else " ".join(node.value.split())
        found: dict[str, Any] = {}
        for key_node, value in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.mistake(place, "has a key that is no text")
            if key in found:
                raise self.mistake(self._at((*place, key), key_node), "is given twice")
            below = self._at((*place, key), key_node)
            found[key] = self._plain(loader, value, below, typed or key in self.typed)
        return found

    def _at(self, place: Place, node: yaml.Node) -> Place:
        self._lines[place] = node.start_mark.line + 1
        return place


def _explain(kind: Any, error: ValidationError) -> tuple[Place, str]:
    """The place of the first error, and at most three errors in words.

    Unknown fields come first, since they explain missing ones.
    """
    errors = error.errors(include_url=False)
    errors = sorted(errors, key=lambda x: x["type"] != "unexpected_keyword_argument")[:3]
    reasons = []
    for x in errors:
        reason = REASONS.get(x["type"]) or re.sub(r"^\w+ should ", "must ", x["msg"])
        reason = reason.removeprefix("Value error, ")
        if x["type"] == "unexpected_keyword_argument":
            reason += near(str(x["loc"][-1]), _fields(kind))
        elif x["loc"] and isinstance(x["input"], str | int | float | None):
            reason += f", got {x['input']!r:.60}"
        reasons.append(f"{_name(x['loc'])} {reason}".strip())
    return errors[0]["loc"], "; ".join(reasons)


def _fields(kind: Any) -> list[str]:
    """The names of all fields, also of nested ones."""
    schema = TypeAdapter(kind).json_schema()
    models = [schema, *schema.get("$defs", {}).values()]
    return sorted({name for model in models for name in model.get("properties", {})})


def _name(place: Place) -> str:
    """`claims[0].measure`."""
    parts = (f"[{x}]" if isinstance(x, int) else f".{x}" for x in place if x != "[key]")
    return "".join(parts).removeprefix(".")
