"""Imports go down only, and each foreign library has the few files that own it."""

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dspy_stream

ROOT = Path(dspy_stream.__file__).parent

# What each part may import, from the bottom to the top. Nothing may import what stands below it here.
LAYERS = {
    "paths": set(),  # names other parts, and imports none
    "dotted": set(),
    "errors": set(),
    "foreign_errors": {"errors"},
    "logs": set(),
    "types": set(),
    "usage": {"types"},
    "rows": set(),
    "clock": set(),
    "collector": set(),
    "threads": set(),
    "events": {"types"},
    "environment": {"errors"},
    "configuration": {"dotted", "environment", "errors", "events"},
    "callbacks": {"configuration", "events"},
    "shown": set(),
    "history": {"configuration", "dotted", "events", "shown", "types", "usage"},
    "runtime": {"threads", "types"},  # drives steps; knows only what a request and a response are
    "telling": {"events", "history", "runtime", "types"},
    "program": {"configuration", "errors", "events", "runtime"},  # settings and runtime: for async tools
    "examples": {"errors", "program"},
    "adapters": {"errors", "events", "paths", "program", "types"},
    "lm": {
        *("clock", "configuration", "dotted", "errors", "events", "history", "runtime", "telling"),
        *("threads", "types", "usage"),
    },
    "state": {"clock", "errors", "rows", "types"},
    "interpreters": {"errors", "events", "program", "runtime"},
    "engine": {"adapters", "errors", "events", "runtime", "state", "telling", "types", "usage"},
    "modules": {
        *(
            "adapters",
            "callbacks",
            "clock",
            "collector",
            "configuration",
            "engine",
            "errors",
            "events",
            "history",
            "interpreters",
            "lm",
            "program",
            "runtime",
            "state",
            "telling",
            "threads",
            "types",
            "usage",
        ),
    },
    "interop": {
        *("adapters", "configuration", "dotted", "engine", "errors", "history", "lm", "modules", "program"),
        *("runtime", "types"),
    },
    "stream": {
        *("adapters", "clock", "collector", "configuration", "engine", "errors", "lm", "modules"),
        *("events", "interop", "program", "rows", "runtime", "state", "threads", "types"),
    },
    "operators": {"modules", "program", "rows", "stream", "types"},
    "cli": {"errors", "interop", "lm", "modules", "rows", "state", "stream", "threads"},
}

# Third-party libraries, and the files (or folders, with a slash) that may import them.
OWNERS = {
    "aiohttp": {"lm/pools.py"},
    "bytewax": {"operators.py", "stream/"},
    "dspy": {"interop/"},
    "greenlet": {"runtime.py"},
    "httpx": {"lm/pools.py", "lm/transport.py"},
    "mcp": {"modules/mcp_client.py"},
    "numpy": {"modules/vectors.py"},
    "orjson": {""},
    "pandas": set(),
    "polars": set(),
    "pyarrow": {"stream/sources/parquet.py", "stream/sinks/parquet.py"},
    "pydantic": {
        "adapters/",
        "interop/describe.py",
        "program/",
        "stream/codec.py",
        "stream/sources/values.py",
    },
    "pydantic_core": {"adapters/", "program/"},
    "pyreqwest": {"lm/pools.py"},
    "rich": {"cli/"},
    "rocksdict": {"state/database.py", "state/salvage.py", "state/store.py"},
    "tomli": {"environment.py"},
    "tomllib": {"environment.py"},  # a library of others before Python 3.11
    "typer": {"cli/"},
    "typing_extensions": {""},
    "usearch": {"modules/vectors.py"},
    "uvloop": {"runtime.py"},
    "annotated_types": {"adapters/", "program/"},
}


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


@functools.cache
def tree(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every imported module by its full name, inside functions and for the type checker too."""
    package = ["dspy_stream", *path.relative_to(ROOT).parent.parts]
    for node in tree(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            if base == "dspy_stream":
                for alias in node.names:
                    yield f"{base}.{alias.name}", node.lineno
            else:
                yield base, node.lineno


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_part_has_its_place():
    found = {part_of(path) for path in files() if path.read_text().strip()} - {"__init__"}
    assert found == set(LAYERS)


def test_the_table_itself_goes_down_only():
    order = list(LAYERS)
    for part, allowed in LAYERS.items():
        assert all(order.index(other) < order.index(part) for other in allowed), part


@pytest.mark.parametrize("part", LAYERS)
def test_imports_go_down_only(part):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files()
        if part_of(path) == part
        for name, line in imports(path)
        if name.startswith("dspy_stream.") and name.split(".")[1] not in {*LAYERS[part], part, "__version__"}
    ]
    assert not wrong


def test_every_foreign_library_is_imported_by_its_owners_alone():
    wrong = []
    for path in files():
        place = path.relative_to(ROOT).as_posix()
        for name, line in imports(path):
            library = name.partition(".")[0]
            if library == "dspy_stream" or library in sys.stdlib_module_names:
                continue
            owners = OWNERS.get(library, set())
            if not any(
                place == owner or ((owner.endswith("/") or not owner) and place.startswith(owner))
                for owner in owners
            ):
                wrong.append(f"{place}:{line} imports {name}")
    assert not wrong


def test_nothing_is_imported_relatively_or_with_a_star():
    for path in files():
        for node in tree(path):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}"
                assert all(alias.name != "*" for alias in node.names), f"{path}:{node.lineno}"
