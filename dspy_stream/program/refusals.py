"""Refusals that are, besides, the built-in error which DSPy raises in their place.

A program that was written for DSPy and catches a KeyError, a TypeError or a FileNotFoundError there
goes on catching it.
"""

from __future__ import annotations

from dspy_stream.errors import ConfigurationError, SignatureError

__all__ = [
    "ByPlace",
    "MissingArgument",
    "MissingDocument",
    "MissingPredictor",
    "SavedStateError",
    "UndeclaredField",
    "Uneven",
    "Unreadable",
    "UnknownField",
]


class ByPlace(ValueError, TypeError):
    """Inputs were given by place, and not by name; DSPy raises one or the other."""


class UndeclaredField(SignatureError, TypeError):
    """A field of a signature class was made by neither ``InputField`` nor ``OutputField``."""


class Uneven(ValueError, AssertionError):
    """Completions have not the same fields, or not equally many values; DSPy asserts it."""


class Unreadable(SignatureError, SyntaxError):
    """A signature string is not written as one; DSPy has Python's own parser refuse it."""

    __str__ = Exception.__str__  # a SyntaxError would look for a file and a line


class UnknownField(SignatureError, KeyError):
    """A signature has no field of the name that was asked for."""

    __str__ = Exception.__str__  # a KeyError would show the message in quotes


class SavedStateError(ConfigurationError, ValueError):
    """A state or a program cannot be saved or read as it was asked, or does not fit."""


class MissingPredictor(SavedStateError, KeyError):
    """A saved state and a program have other predictors."""

    __str__ = Exception.__str__


class MissingArgument(ValueError, TypeError):
    """A tool was called without an argument that it needs; Python's own call is a TypeError."""


class MissingDocument(SavedStateError, FileNotFoundError):
    """There is no file of that name."""

    __str__ = Exception.__str__
