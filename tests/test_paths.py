"""Programs that import from DSPy's modules find the same names under this package."""

import importlib
import json
import subprocess
import sys

import pytest

import dspy_stream
from dspy_stream import paths

PLACES = [(place, name) for place, names in paths._HOMES.items() for name in names.split()]


@pytest.mark.parametrize(("place", "name"), PLACES)
def test_every_name_of_every_path_is_there(place, name):
    module = importlib.import_module(f"dspy_stream.{place}")
    assert getattr(module, name) is not None
    if name in dspy_stream.__all__:
        assert getattr(module, name) is getattr(dspy_stream, name)


@pytest.mark.parametrize(
    "code",
    [
        "from dspy_stream.utils.dummies import DummyLM as found, DummyLM as same",
        "from dspy_stream.adapters.types.tool import Tool as found; from dspy_stream import Tool as same",
        "import dspy_stream.primitives.example as m, dspy_stream as d; found, same = m.Example, d.Example",
        "import dspy_stream as d; found, same = d.adapters.chat_adapter.ChatAdapter, d.ChatAdapter",
        "import dspy_stream as d; found, same = d.adapters.types.History, d.History",
        "from dspy_stream.signatures import *; import dspy_stream as d; found, same = Signature, d.Signature",
        # A function and a module of one name: the attribute stays the function.
        "import dspy_stream.utils.syncify, dspy_stream as d; found, same = d.utils.syncify, d.syncify",
    ],
)
def test_in_a_new_process(code):
    made = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}\nassert found is same"],
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
    )
    assert made.returncode == 0, made.stderr


def test_importing_a_path_imports_nothing_else():
    made = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys, json, dspy_stream.utils.callback\n"
            "print(json.dumps(sorted(name for name in sys.modules if name.startswith('dspy_stream'))))",
        ],
        capture_output=True,
        timeout=60,
        check=True,
        text=True,
    )
    assert json.loads(made.stdout) == [
        *("dspy_stream", "dspy_stream.paths", "dspy_stream.utils", "dspy_stream.utils.callback"),
    ]


def test_what_is_not_there():
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from dspy_stream.utils import Nothing  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"dspy_stream\.utils\.nothing"):
        importlib.import_module("dspy_stream.utils.nothing")
    with pytest.raises(AttributeError, match=r"'dspy_stream\.adapters' has no attribute 'Nothing'"):
        _ = dspy_stream.adapters.Nothing


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MIPROv2", "has no attribute 'MIPROv2': not in dspy_stream; it has no optimizers yet"),
        ("Evaluate", "has no attribute 'Evaluate': not in dspy_stream; it has no evaluation yet"),
        ("ColBERTv2", "has no attribute 'ColBERTv2': not in dspy_stream; configure"),
    ],
)
def test_a_name_of_dspy_that_is_not_here_is_an_error_that_says_so(name, words):
    with pytest.raises(AttributeError, match=words):
        getattr(dspy_stream, name)
    assert not hasattr(dspy_stream, name)


def test_so_is_one_of_a_path():
    with pytest.raises(AttributeError, match="has no attribute 'Cache': not in dspy_stream; configure_cache"):
        _ = dspy_stream.clients.Cache


def test_so_is_a_module():
    with pytest.raises(ModuleNotFoundError, match="it has no optimizers yet"):
        importlib.import_module("dspy_stream.teleprompt")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("from dspy_stream import Predict, BootstrapFewShot", "it has no optimizers yet"),
        ("from dspy_stream import teleprompt", "it has no optimizers yet"),
        ("from dspy_stream import Evaluate", "it has no evaluation yet"),
        ("from dspy_stream.experimental import Noul", "decision types are not part of it"),
        ("from dspy_stream.clients import Cache", "configure_cache"),
        ("from dspy_stream.clients.cache import Cache", "configure_cache"),
        ("from dspy_stream.retrievers.weaviate_rm import WeaviateRM", r"configure\(rm="),
        ("from dspy_stream.lm15 import Message", "subclasses BaseLM"),
    ],
)
def test_so_is_one_that_is_imported_from_a_module(code, words):
    with pytest.raises(ImportError, match=f"cannot be imported: not in dspy_stream; .*{words}"):
        exec(code, {})


def test_the_paths_are_installed_once():
    before = list(sys.meta_path)
    paths.install()
    assert sys.meta_path == before


def test_the_names_of_a_path_are_listed():
    module = importlib.import_module("dspy_stream.streaming.messages")
    assert {"StatusMessage", "StreamResponse"} <= set(dir(module))
    assert module.__all__ == ["StatusMessage", "StatusMessageProvider", "StreamResponse"]
