"""The package lists what it has, and the examples in its documentation run."""

import doctest
import importlib
import pkgutil

import pytest

import dspy_stream.program.types as package

MODULES = [
    "dspy_stream.program.types",
    *(f"dspy_stream.program.types.{m.name}" for m in pkgutil.iter_modules(package.__path__)),
]


def test_every_named_type_is_public():
    assert set(package.NAMED) <= set(package.__all__)
    assert all(package.NAMED[name] is getattr(package, name) for name in package.NAMED)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
    for exported in module.__all__:
        assert hasattr(module, exported)
