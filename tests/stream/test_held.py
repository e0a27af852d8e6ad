"""A flow says to what pace the 429s of an endpoint hold it."""

from __future__ import annotations

import logging
from io import StringIO

import pytest
from rich.console import Console

from dspy_stream.cli.show import summary
from dspy_stream.errors import LMError, LMRateLimitError, LMServerError
from dspy_stream.stream.held import HeldBack
from dspy_stream.stream.report import Report


def refusal(host: str, rate: float | None) -> LMError:
    error = LMRateLimitError("slow down")
    error.held = (host, rate)
    return error


def test_it_is_told_at_most_twice_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    held = HeldBack()
    with caplog.at_level(logging.WARNING, logger="dspy_stream"):
        for now in range(100):
            held.failed(refusal("one.example", 12.345), float(now))
    assert caplog.messages == ["held to about 12.3 requests/s by 429s of one.example"] * 4
    assert held.rates == {"one.example": 12.345}


@pytest.mark.parametrize(
    ("rate", "told"), [(0.25, "0.25"), (12.345, "12.3"), (999.4, "999"), (999.6, "1,000"), (1013.4, "1,013")]
)
def test_no_pace_is_told_with_an_exponent(caplog: pytest.LogCaptureFixture, rate: float, told: str) -> None:
    with caplog.at_level(logging.WARNING, logger="dspy_stream"):
        HeldBack().failed(refusal("one.example", rate), 0.0)
    assert caplog.messages == [f"held to about {told} requests/s by 429s of one.example"]
    console = Console(file=StringIO(), width=100)
    summary(console, Report(flow="f", status="finished", held={"h": rate}))
    assert f"about {told} requests/s, by 429s of h" in console.file.getvalue()  # type: ignore[attr-defined]


def test_other_failures_and_refusals_that_hold_nobody_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    held = HeldBack()
    with caplog.at_level(logging.WARNING, logger="dspy_stream"):
        held.failed(LMServerError("oops", status=500), 1.0)
        held.failed(LMRateLimitError("slow down"), 2.0)
        held.failed(refusal("one.example", None), 3.0)
    assert not caplog.messages
    assert held.rates == {}


def test_an_endpoint_that_holds_nobody_any_more_is_not_in_the_report() -> None:
    held = HeldBack()
    held.failed(refusal("one.example", 5.0), 1.0)
    held.failed(refusal("two.example", 7.0), 1.0)
    held.failed(refusal("one.example", None), 2.0)
    assert held.rates == {"two.example": 7.0}


def test_the_report_and_the_summary_say_it() -> None:
    report = Report(flow="f", status="finished", held={"one.example (small)": 12.3456})
    assert report.to_json()["held_to"] == {"one.example (small)": 12.346}
    console = Console(file=StringIO(), width=100)
    summary(console, report)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "about 12.3 requests/s, by 429s of one.example (small)" in shown
    summary(quiet := Console(file=StringIO(), width=100), Report(flow="f", status="finished"))
    assert "held back" not in quiet.file.getvalue()  # type: ignore[attr-defined]
