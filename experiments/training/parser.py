"""The parser of the command line: errors of one line, and YAML of limited size."""

import re
from typing import Any, ClassVar, NoReturn

import yaml
from jsonargparse import get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from experiments.console import UserError, near
from experiments.records.parsing import check_yaml


class Parser(LightningArgumentParser):
    """Lightning's parser with errors of one line that names the flag."""

    # The command line; of the class, because jsonargparse makes further parsers for the switches.
    given: ClassVar[list[str]] = []

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown = re.match(r"Unrecognized arguments: (--[\w.]+)", message)
        flags = [flag for action in self._actions for flag in action.option_strings]
        raise UserError(f"{self.clear(message)}{near(unknown[1], flags) if unknown else ''}")

    def clear(self, message: str) -> str:
        """Shorten jsonargparse's message to its reason, with the full name of the flag."""
        message = " ".join(message.split())
        if switch := re.match(r'Parser key "(\w+)": .* import path string: (.+?) Given', message):
            return f"--{switch[1]} must be true or false, got {switch[2]}"
        if re.match(r"Not a valid subclass of (ParameterBudget|Lookahead|EMA|SWA) ", message):
            switch = re.search(r"--(budget|lookahead|ema|swa)[ =](\S+)", " ".join(self.given))
            return f"--{switch[1]} must be true or false, got {switch[2]}" if switch else message
        if choice := re.match(
            r'Parser key "([\w.]+)": .* Expected a typing\.Literal\[(.+)\] '
            r"Given value type: .* Given value: (.+)",
            message,
        ):
            return f"--{choice[1]} must be true, false, {choice[2]}, got {choice[3]}"
        if reason := re.search(r"Expected a <class 'bool'> - (.+?) Given value", message):
            message = reason[1]
        argument = re.match(r"Option '(\w+)'|Parser key \"(\w+)\"|(\w+) must ", message)
        if argument:
            name = argument[argument.lastindex or 0]
            flags = {text.partition("=")[0] for text in self.given}
            given = [flag for flag in flags if flag.endswith(f".{name}")]
            message = f"{given[0]}: {message}" if len(given) == 1 else message
        return message


_load_yaml = get_loader("yaml")


def _load_bounded(text: str) -> Any:
    """The YAML loader of jsonargparse for flags and files; rejects YAML bombs."""
    if len(text) > 10_000 or "*" in text:
        check_yaml(text)
    return _load_yaml(text)


set_loader("yaml", _load_bounded, (yaml.YAMLError,))
