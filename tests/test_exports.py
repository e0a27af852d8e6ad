"""The public names: one sorted list, lazily resolved, known to type checkers, light to import."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dspy_stream

HEAVY = (
    "bytewax",
    "greenlet",
    "httpx",
    "orjson",
    "pyarrow",
    "pydantic",
    "pyreqwest",
    "rich",
    "rocksdict",
    "typer",
    "uvloop",
)
PUBLIC = (
    "dspy_stream.adapters",
    "dspy_stream.lm",
    "dspy_stream.modules",
    "dspy_stream.program",
    "dspy_stream.program.types",
    "dspy_stream.state",
    "dspy_stream.stream",
)


def for_type_checkers(module):
    """Name -> where it is imported from, under ``if TYPE_CHECKING``."""
    tree = ast.parse(Path(module.__file__).read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for inner in node.body:
                if isinstance(inner, ast.ImportFrom):
                    found.update({alias.asname or alias.name: inner.module for alias in inner.names})
    return found


def fresh(code):
    """What a new interpreter prints, as JSON."""
    made = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, timeout=60, check=False, text=True
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def test_the_list_is_sorted_after_the_version():
    first, *names = dspy_stream.__all__
    assert first == "__version__"
    assert names == sorted(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", dspy_stream.__all__)
def test_every_name_resolves_and_stays(name):
    value = getattr(dspy_stream, name)
    assert value is not None
    assert getattr(dspy_stream, name) is value
    assert name in dir(dspy_stream)


def test_type_checkers_see_the_same_names_from_the_same_places():
    seen = for_type_checkers(dspy_stream)
    assert set(seen) == set(dspy_stream.__all__) - {"__version__"}
    for name, home in seen.items():
        assert getattr(importlib.import_module(home), name) is getattr(dspy_stream, name)
        assert home == f"dspy_stream.{dspy_stream._EXPORTS[name]}"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'dspy_stream' has no attribute 'Nowhere'"):
        _ = dspy_stream.Nowhere


@pytest.mark.parametrize("name", PUBLIC)
def test_every_package_lists_what_it_has(name):
    module = importlib.import_module(name)
    for public in module.__all__:
        assert getattr(module, public) is not None
    assert len(module.__all__) == len(set(module.__all__))


def test_importing_the_package_imports_nothing_heavy():
    loaded = fresh("import sys, json, dspy_stream; print(json.dumps(sorted(sys.modules)))")
    assert not [name for name in loaded if name.partition(".")[0] in HEAVY]
    assert [name for name in loaded if name.startswith("dspy_stream")] == ["dspy_stream", "dspy_stream.paths"]


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("Signature", ("bytewax", "httpx", "pyreqwest", "rocksdict", "typer", "rich", "pyarrow")),
        ("Predict", ("bytewax", "httpx", "pyreqwest", "rocksdict", "typer", "rich", "pyarrow")),
        ("LM", ("bytewax", "httpx", "pyreqwest", "rocksdict", "typer", "rich", "pyarrow")),
        ("Stream", ("httpx", "pyreqwest", "rocksdict", "typer", "rich", "pyarrow", "pandas", "polars")),
    ],
)
def test_a_name_brings_only_what_it_needs(name, absent):
    loaded = fresh(
        f"import sys, json, dspy_stream; dspy_stream.{name}; print(json.dumps(sorted(sys.modules)))"
    )
    assert not [module for module in loaded if module in absent]


def test_the_command_shows_its_version_without_the_engine():
    loaded = fresh(
        "import sys, json, io\n"
        "from dspy_stream.cli.main import main\n"
        "sys.argv, out, sys.stdout = ['dspy-stream', '--version'], sys.stdout, io.StringIO()\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.stdout = out; print(json.dumps(sorted(sys.modules)))"
    )
    assert not [module for module in loaded if module in ("bytewax", "httpx", "rocksdict", "pyarrow")]


def test_the_version_is_the_distributions():
    from importlib.metadata import version

    assert dspy_stream.__version__ == version("dspy_stream")


def test_the_package_is_typed():
    assert (Path(dspy_stream.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("adapters", "ChatAdapter"),
        ("experimental", "Citations"),
        ("retrievers", "Embeddings"),
        ("streaming", "StreamListener"),
    ],
)
def test_packages_are_attributes_as_in_dspy(package, name):
    found = fresh(
        "import json, dspy_stream as dspy\n"
        f"print(json.dumps([dspy.{package}.{name} is dspy.{name}, '{package}' in dir(dspy)]))"
    )
    assert found == [True, True]


def test_errors_of_models_are_told_apart_as_in_dspy():
    passing = dspy_stream.LMServerError("down")
    assert isinstance(passing, dspy_stream.DSPyError)
    assert dspy_stream.is_retryable_lm_error(passing)
    assert not dspy_stream.is_retryable_lm_error(dspy_stream.LMAuthError("no"))
    assert not dspy_stream.is_retryable_lm_error(ValueError("down"))
