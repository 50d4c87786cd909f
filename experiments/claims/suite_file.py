"""A YAML file whose mistakes are reported with line and key."""

from pathlib import Path
from typing import Any, NoReturn

import yaml

from experiments.console import UserError, near


class SuiteError(UserError):
    """A malformed suite: file, line and key in one line."""


def read_entry(path: Path) -> "Entry":
    """Read a file; SuiteError if it is not YAML."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SuiteError(f"{path}, line {line}: {error.problem}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SuiteError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if root is None:
        raise SuiteError(f"{path}, line 1: is empty")
    return Entry(path, root, "", line=1)


class Entry:
    """A node of the YAML file with its key and its line."""

    def __init__(self, path: Path, node: yaml.Node, key: str, line: int) -> None:
        self.path, self.node, self.key, self.line = path, node, key, line

    def refuse(self, reason: str) -> NoReturn:
        """Raise SuiteError with file, line and key; the reason continues the sentence."""
        message = " ".join(f"{self.key} {reason}".split())
        raise SuiteError(f"{self.path}, line {self.line}: {message}")

    def mapping(
        self, required: tuple[str, ...] = (), optional: tuple[str, ...] | None = None
    ) -> dict[str, "Entry"]:
        """Its entries by key; without `optional` any key is allowed."""
        if not isinstance(self.node, yaml.MappingNode):
            self.refuse("must be a mapping")
        entries: dict[str, Entry] = {}
        for key_node, node in self.node.value:
            key = str(key_node.value)
            within = f"{self.key}.{key}" if self.key else key
            entry = Entry(self.path, node, within, key_node.start_mark.line + 1)
            if key in entries:
                entry.refuse("is given twice")
            known = [*required, *(optional or ())]
            if optional is not None and key not in known:
                entry.refuse(f"is unknown{near(key, known)}: the keys are {', '.join(known)}")
            entries[key] = entry
        for key in required:
            if key not in entries:
                self.refuse(f"lacks {key}")
        return entries

    def sequence(self) -> list["Entry"]:
        """Its entries in order."""
        if not isinstance(self.node, yaml.SequenceNode):
            self.refuse("must be a list")
        return [
            Entry(self.path, node, f"{self.key}[{i}]", node.start_mark.line + 1)
            for i, node in enumerate(self.node.value)
        ]

    def text(self) -> str:
        """The characters of a scalar in the file: a number keeps its digits."""
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value.strip():
            self.refuse("must be a text")
        return " ".join(self.node.value.split())

    def choice(self, known: tuple[str, ...]) -> Any:
        """A text that is one of these."""
        text = self.text()
        if text not in known:
            self.refuse(f"must be one of {', '.join(known)}, got {text}{near(text, list(known))}")
        return text

    def value(self) -> Any:
        """The value in Python."""
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_document(self.node)
        except yaml.YAMLError as error:
            self.refuse(str(error))
