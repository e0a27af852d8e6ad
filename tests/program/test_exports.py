import doctest
import importlib
import pkgutil

import pytest

import dspy_stream.program as package

MODULES = [
    "dspy_stream.program",
    *(f"dspy_stream.program.{m.name}" for m in pkgutil.iter_modules(package.__path__)),
]


def test_public_names_are_sorted_and_there():
    assert package.__all__ == sorted(package.__all__)
    for name in package.__all__:
        assert hasattr(package, name)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
    for exported in module.__all__:
        assert hasattr(module, exported)
