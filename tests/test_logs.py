"""The package's log, switched on and off."""

from __future__ import annotations

import logging
import sys

import pytest

import dspy_stream as ds


def test_the_log_is_switched_off_and_on(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("dspy_stream")
    ds.disable_logging()
    try:
        logger.warning("unheard")
    finally:
        ds.enable_logging()
    logger.warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]


def test_a_logger_writes_to_standard_error_as_it_is_then(capsys: pytest.CaptureFixture[str]) -> None:
    name = "tests.of.logging"
    ds.configure_dspy_loggers(name)
    ds.configure_dspy_loggers(name)
    logging.getLogger(name).info("once")
    said = capsys.readouterr().err
    assert said.count("once") == 1
    assert "INFO tests.of.logging: once" in said
    assert sys.stderr is not None
    logging.getLogger(name).handlers.clear()


def test_errors_under_dspys_names() -> None:
    assert issubclass(ds.LMStreamAssemblyError, ds.LMUnexpectedError)
    assert ds.is_retryable_lm_error(ds.LMServerError("x"))
    assert not ds.is_retryable_lm_error(ValueError("x"))
    assert ds.DSPyError is ds.DSPyStreamError
    assert str(ds.ContextWindowExceededError()) == "Context window exceeded"
    with pytest.raises(ValueError, match="No LM is loaded"):
        ds.Predict("question -> answer")(question="q")


def test_settings_that_only_dspy_uses_are_taken() -> None:
    with ds.context(experimental=True):
        assert ds.settings.experimental is True
    assert ds.settings.caller_modules is None
