"""Each safeguard that `make mutants` switches off is still where it looks for it."""

from pathlib import Path

import pytest

from bench.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_a_mutant_changes_stands_once_in_its_file(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text(encoding="utf-8")

    assert text.count(mutant.old) == 1
    assert mutant.old != mutant.new


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_tests_that_notice_a_mutant_exist(mutant: Mutant) -> None:
    files = [test for test in mutant.tests if test.endswith(".py")]

    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []
