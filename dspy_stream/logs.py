"""Switching the package's log on and off, with DSPy's names.

Everything the package logs goes to the logger ``dspy_stream``, which is the application's to configure
as any other; nothing is set up on import.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Final, TextIO

__all__ = ["configure_dspy_loggers", "disable_logging", "enable_logging"]

_NAME: Final = "dspy_stream"
_HANDLER: Final = "dspy_stream handler"
_LINE: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:  # it has no type parameter before Python 3.11
    _StreamHandler = logging.StreamHandler


def disable_logging() -> None:
    """Log nothing from now on, warnings included."""
    logging.getLogger(_NAME).disabled = True


def enable_logging() -> None:
    """Log again, as before :func:`disable_logging`."""
    logging.getLogger(_NAME).disabled = False


class _StandardError(_StreamHandler):
    """Writes to what is standard error at that moment: notebooks and tests put others in its place."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure_dspy_loggers(root_module_name: str = _NAME) -> None:
    """Write a logger's records, from INFO on, to standard error, one dated line each, and nowhere else.

    Called again it changes nothing.

    >>> configure_dspy_loggers("an_application")
    >>> logging.getLogger("an_application").level == logging.INFO
    True
    """
    logger = logging.getLogger(root_module_name)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if any(handler.name == _HANDLER for handler in logger.handlers):
        return
    handler = _StandardError()
    handler.setFormatter(logging.Formatter(_LINE, "%Y/%m/%d %H:%M:%S"))
    handler.set_name(_HANDLER)
    logger.addHandler(handler)
