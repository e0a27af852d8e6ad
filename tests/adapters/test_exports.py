import doctest
import importlib
import pkgutil

import pytest

from dspy_stream import adapters

MODULES = sorted(info.name for info in pkgutil.iter_modules(adapters.__path__, "dspy_stream.adapters."))


def test_exports_are_sorted_and_there():
    assert adapters.__all__ == sorted(adapters.__all__)
    assert all(hasattr(adapters, name) for name in adapters.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_documentation(name):
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0
