"""Cases of how a program for DSPy behaves, and what runs one of them.

`behaviour.txt` holds the cases: a name, a few lines of Python in which `D` is the package and
`lm(answers)` a model that gives these, and what the last line comes to: `= repr`, or `! Error: words`
that are in the error's message. All of them were observed under DSPy 3.4.1. Run as a program, by a
Python that has DSPy, this looks whether they still hold there.
"""

import ast
import asyncio
import contextlib
import copy
import dataclasses
import datetime
import enum
import io
import json
import sys
import threading
import typing
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import pydantic

CASES = Path(__file__).with_name("behaviour.txt")
_NAMES = {
    **{
        "asyncio": asyncio,
        "contextlib": contextlib,
        "copy": copy,
        "dataclasses": dataclasses,
        "datetime": datetime,
        "enum": enum,
        "io": io,
        "json": json,
        "pydantic": pydantic,
        "threading": threading,
        "typing": typing,
    },
    **{name: getattr(typing, name) for name in ("Any", "Dict", "List", "Literal", "Optional", "Union")},
    "__name__": __name__,  # the module of the classes that a case defines
}


def cases():
    """(name, code, expected) of every case."""
    blocks = CASES.read_text(encoding="utf-8").split("\n### ")[1:]
    lines = [block.rstrip("\n").split("\n") for block in blocks if not block.startswith("#")]
    return [(name, "\n".join(code), expected) for name, *code, expected in lines]


def outcome(code, package, model):
    """The value of the last line of a case, or the error that it raised."""
    names = {**_NAMES, "D": package, "dspy": package, "lm": model}
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else ast.Expr(ast.Constant(None))
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            exec(compile(tree, "case", "exec"), names)
            return eval(compile(ast.Expression(last.value), "case", "eval"), names), None
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
        return None, error


def difference(expected, value, error):
    """What is not as expected, in words; empty where all is."""
    if expected.startswith("= "):
        got = f"= {value!r}" if error is None else f"! {type(error).__name__}: {error}"
        return "" if got == expected else got
    kind, _, words = expected.removeprefix("! ").partition(": ")
    if error is None:
        return f"= {value!r}"
    fits = kind in {each.__name__ for each in type(error).__mro__} and words in str(error)
    return "" if fits else f"! {type(error).__name__}: {error}"


def _under_dspy():
    import dspy
    from dspy.utils import DummyLM

    for name, code, expected in cases():
        found = difference(expected, *outcome(code, dspy, lambda answers, n=1: DummyLM(answers)))
        if found:
            print(json.dumps({"case": name, "expected": expected, "found": found}))
        dspy.configure(lm=None, track_usage=False, adapter=None, callbacks=[], rm=None)


if __name__ == "__main__":
    sys.path.pop(0)
    _under_dspy()
