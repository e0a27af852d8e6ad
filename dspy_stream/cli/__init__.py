"""The command line: each verb parses its arguments and calls one function of the package."""

from dspy_stream.cli.main import main

__all__ = ["main"]
