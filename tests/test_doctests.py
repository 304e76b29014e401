"""The examples in docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import sampan

MODULES = [
    m.name
    for m in pkgutil.walk_packages(sampan.__path__, "sampan.")
    if m.name.rpartition(".")[2] not in ("__main__", "libsampan")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples():
    found = [doctest.DocTestFinder().find(importlib.import_module(name)) for name in MODULES]
    assert sum(bool(test.examples) for tests in found for test in tests) >= 5
