"""Who may import whom: the contracts of pyproject.toml hold, and each breaks when it should."""

import ast
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
PACKAGES: list[str] = LINTER["root_packages"]
CONTRACTS: list[str] = [contract["id"] for contract in LINTER["contracts"]]

# For each contract, imports that must break it: where, and what.
OFFENCES = [
    ("layers", "domain/__init__.py", "import adapters"),
    ("layers", "adapters/__init__.py", "import streams.topics"),
    ("layers", "streams/topics.py", "import tables"),
    ("layers", "tables/__init__.py", "import agents"),
    ("layers", "web/__init__.py", "import agents"),
    ("layers", "agents/__init__.py", "import web"),
    ("plain-domain", "domain/ids.py", "import msgspec"),
    ("plain-domain", "domain/turns.py", "from config.settings import Settings"),
    ("no-faust-below", "adapters/__init__.py", "import faust"),
    ("no-faust-below", "config/metrics.py", "from mode import Service"),
    ("through-services", "agents/__init__.py", "import adapters"),
    ("through-services", "tables/__init__.py", "import adapters"),
    ("through-services", "web/__init__.py", "from adapters import model"),
    ("only-the-app-opens-services", "streams/topics.py", "import adapters.services"),
    ("config-is-a-leaf", "config/settings.py", "from domain.errors import ChatError"),
]


def lint(tree: Path, *only: str) -> subprocess.CompletedProcess[str]:
    """Check the contracts, or only some, on a tree."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    chosen = [argument for contract in only for argument in ("--contract", contract)]
    return subprocess.run([*command, *chosen], cwd=tree, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of our packages, to do wrong in."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "static"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold() -> None:
    linted = lint(ROOT)

    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert f"{len(CONTRACTS)} kept, 0 broken" in linted.stdout


@pytest.mark.parametrize(("contract", "where", "offence"), OFFENCES)
def test_an_import_that_a_contract_forbids_breaks_it(tree: Path, contract: str, where: str, offence: str) -> None:
    file = tree / where
    file.write_text(f"{file.read_text()}\n{offence}\n")

    linted = lint(tree, contract)

    assert linted.returncode == 1
    assert "0 kept, 1 broken" in linted.stdout, linted.stdout + linted.stderr
    assert where.removesuffix(".py").removesuffix("/__init__").replace("/", ".") in linted.stdout


def test_every_contract_was_broken_once() -> None:
    assert {contract for contract, _, _ in OFFENCES} == set(CONTRACTS)


def imports(source: str) -> set[str]:
    """Return the top-level names that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("module", sorted((ROOT / "domain").rglob("*.py")), ids=lambda path: path.stem)
def test_the_domain_imports_the_standard_library_and_itself(module: Path) -> None:
    assert imports(module.read_text()) - sys.stdlib_module_names <= {"domain"}


def test_a_package_outside_the_standard_library_would_be_noticed_in_the_domain() -> None:
    assert imports("from requests.adapters import Retry\nimport os.path") - sys.stdlib_module_names == {"requests"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_installed_package_brings_one_by_the_same_name(package: str) -> None:
    # `agents` is also how OpenAI's Agents SDK is imported, `tables` PyTables, `web` web.py.
    assert set(packages_distributions().get(package, ())) <= {"headrace"}
