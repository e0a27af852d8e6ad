"""Names of errors that programs written for DSPy catch, beside those that are raised here."""

from __future__ import annotations

from dspy_stream.errors import DSPyStreamError, LMError

__all__ = [
    "DSPyError",
    "LMCollectionLimitError",
    "LMLockTimeoutError",
    "LMStreamAssemblyError",
    "LMUnexpectedError",
    "LMUnsupportedFeatureError",
    "is_retryable_lm_error",
]

DSPyError = DSPyStreamError
"""The root of the tree, under DSPy's name."""


class LMLockTimeoutError(LMError):
    """DSPy raises it where a lock was not free in time; nothing here does."""

    retryable = True
    code = "lock_timeout"


class LMCollectionLimitError(LMError):
    """DSPy raises it where an answer outgrows what is collected; nothing here does."""

    code = "collection_limit"


class LMUnsupportedFeatureError(LMError):
    """DSPy raises it where a provider cannot do what is asked; here that is an LMConfigurationError."""

    code = "unsupported_feature"


class LMUnexpectedError(LMError):
    """DSPy raises it for whatever else goes wrong in a call; here that keeps its own type."""

    code = "unexpected"


class LMStreamAssemblyError(LMUnexpectedError):
    """DSPy raises it where pieces of an answer do not fit; here that is an LMIncompleteError."""

    code = "stream_assembly"


def is_retryable_lm_error(error: BaseException) -> bool:
    """True for a failed model call that may pass when it is made again.

    >>> from dspy_stream.errors import LMAuthError, LMRateLimitError
    >>> is_retryable_lm_error(LMRateLimitError("slow down")), is_retryable_lm_error(LMAuthError("no"))
    (True, False)
    """
    return isinstance(error, LMError) and error.retryable
