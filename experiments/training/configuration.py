"""From flags to the configuration that they resolve to, without building anything."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.console import UserError
from experiments.presets import EXPERIMENTS
from experiments.training.cli import ExperimentCLI, arguments_of
from experiments.training.launch import Launch, read_flags
from lightning_modules.classifier import ImageClassifier


class _Resolver(ExperimentCLI):
    """Parses a command line without building data, network and trainer."""

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass


@cache
def _resolver(arch: str) -> _Resolver:
    # Building a parser takes as long as parsing ten command lines.
    return _Resolver(Launch(arch, Path(), None, quick=False, arguments=[]))


def resolve_config(flags: list[str]) -> dict[str, Any]:
    """All settings of `run.py` with these flags, as in a record's `config`.

    Reads presets and the files of `--config`, but no run folder. UserError for a mistake, as in
    `run.py`.
    """
    known = read_flags(flags)
    if known.arch is None:
        raise UserError("--arch is missing")
    return _resolve(known.arch, Launch(known.arch, Path(), None, known.quick, list(flags)))


@cache
def default_config(arch: str) -> dict[str, Any]:
    """All settings without a preset and without flags."""
    parser = _resolver(arch).parser
    presets, parser.default_config_files = parser.default_config_files, []
    try:
        return _resolve(arch, Launch(arch, Path(), None, quick=False, arguments=[]))
    finally:
        parser.default_config_files = presets


def _resolve(arch: str, launch: Launch) -> dict[str, Any]:
    resolver = _resolver(arch)
    resolver.launch = launch
    resolver.parse_arguments(resolver.parser, arguments_of(launch))
    resolver.before_instantiate_classes()
    return yaml.safe_load(resolver.resolved)


def on_meta(arch: str, hparams: Mapping[str, Any]) -> ImageClassifier:
    """The network of `--arch` on the meta device, not compiled."""
    with torch.device("meta"):
        return EXPERIMENTS[arch](**dict(hparams) | {"compile": False})
