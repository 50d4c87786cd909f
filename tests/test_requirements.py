"""The lock files: complete for every pip, and sufficient for the commands."""

import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCKS = sorted(ROOT.glob("requirements*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: the extras that each of the two locks contains
RUN_TIME = ("export", "dashboard")
DEVELOPMENT = (*RUN_TIME, "ray", "screen", "dev")
#: the modules that need a package of requirements-dev.txt; their commands check for it first
NEED_MORE = {
    "experiments.reproduction.ray_runner",
    "experiments.reproduction.halving",
    "experiments.reporting.screening_page",
}


@cache
def locked(name: str) -> list[Requirement]:
    """The requirements of a lock file."""
    lines = re.findall(r"^[\w.-]+(?:\[.*?\])?==[^\\\n]+", (ROOT / name).read_text(), re.MULTILINE)
    return [Requirement(line) for line in lines]


def applies(need: Requirement, extras: set[str]) -> bool:
    """Whether a package with these extras has this requirement on this system."""
    marker = need.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def lacking(lock: list[Requirement]) -> set[str]:
    """The extras that the lock's installed packages require, but the lock does not name."""
    pins = [pin for pin in lock if applies(pin, set())]
    extras = {canonicalize_name(pin.name): pin.extras for pin in pins}
    missing = set()
    for pin in pins:
        try:
            installed = distribution(pin.name)
        except PackageNotFoundError:
            continue
        if not pin.specifier.contains(installed.version):  # installed from another lock
            continue
        for need in map(Requirement, installed.requires or []):
            other = canonicalize_name(need.name)
            if applies(need, pin.extras) and other in extras:
                missing |= {f"{other}[{extra}]" for extra in need.extras - extras[other]}
    return missing


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_names_every_extra_that_one_of_its_packages_requires(lock: Path) -> None:
    # Otherwise an old pip takes a newer version of the extra's package from the index.
    assert lacking(locked(lock.name)) == set()


def test_an_omitted_extra_is_found() -> None:
    pins = [Requirement(f"lightning=={distribution('lightning').version}"), Requirement("fsspec")]
    assert lacking(pins) == {"fsspec[http]"}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_has_a_hash_for_every_package_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    blocks = re.split(r"^(?=[\w.-]+(?:\[.*?\])?==)", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(locked(lock.name)) > 50
    assert all("--hash=sha256:" in block for block in blocks)


def test_the_development_lock_adds_packages_to_the_other_and_changes_none() -> None:
    # Markers are ignored: a package can be for Windows in one lock, for all systems in the other.
    run_time, development = (
        {(x.name, str(x.specifier)) for x in locked(f"requirements{suffix}.txt")}
        for suffix in ("", "-dev")
    )
    assert run_time < development
    added = {x.name for x in locked("requirements-dev.txt")}
    added -= {x.name for x in locked("requirements.txt")}
    assert {"pytest", "ray", "optuna", "playwright", "ruff", "mypy", "mkdocs"} <= added


@pytest.mark.parametrize(
    ("lock", "extras"), [("requirements.txt", RUN_TIME), ("requirements-dev.txt", DEVELOPMENT)]
)
def test_a_lock_contains_the_requirements_of_pyproject_toml(
    lock: str, extras: tuple[str, ...]
) -> None:
    asked = list(PROJECT["dependencies"])
    for extra in extras:
        asked += PROJECT["optional-dependencies"][extra]
    pins = {}
    for pin in locked(lock):
        if pin.marker is None or pin.marker.evaluate():
            pins[canonicalize_name(pin.name)] = pin
    for need in map(Requirement, asked):
        if canonicalize_name(need.name) == PROJECT["name"]:  # the extras of the project itself
            continue
        pin = pins[canonicalize_name(need.name)]
        [version] = pin.specifier
        assert need.specifier.contains(version.version, prereleases=True), need
        assert need.extras <= pin.extras, need


def test_the_code_needs_no_package_of_the_development_lock() -> None:
    run_time = {canonicalize_name(x.name) for x in locked("requirements.txt")}
    development = {canonicalize_name(x.name) for x in locked("requirements-dev.txt")}
    blocked = [
        module
        for module, owners in packages_distributions().items()
        if {canonicalize_name(owner) for owner in owners} <= development - run_time
    ]
    assert "pytest" in blocked
    packages = ("lightning_modules", "datamodules", "callbacks", "experiments")
    modules = []
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            modules.append(name.removesuffix(".__init__"))
    assert set(modules) > NEED_MORE
    program = (
        "import sys, importlib\n"
        f"sys.modules |= dict.fromkeys({blocked})\n"
        f"for name in {sorted(set(modules) - NEED_MORE)}: importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
