"""Frames and what is told in them: any slicing, and every form back to what it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.engine import Ticket
from dspy_stream.errors import (
    AdapterParseError,
    BudgetExceeded,
    LMRateLimitError,
    OutputError,
    RecordError,
    RowError,
)
from dspy_stream.modules.process import told
from dspy_stream.modules.process.frames import MOST, Frame, Unframer, frame
from dspy_stream.modules.supervisor import RestartsExceeded
from dspy_stream.types import Choice, Head, Message, Request, Response, Usage

FRAMES = st.lists(
    st.tuples(st.dictionaries(st.text(max_size=5), st.integers(-9, 9), max_size=3), st.binary(max_size=40)),
    max_size=5,
)


@given(FRAMES, st.lists(st.integers(1, 30), max_size=20))
def test_any_slicing_gives_the_same_frames(frames, cuts):
    data = b"".join(frame(head, body) for head, body in frames)
    reader, found = Unframer(), []
    for cut in cuts:
        found += reader.feed(data[:cut])
        data = data[cut:]
    found += reader.feed(data)
    assert found == [Frame(head, body) for head, body in frames]


def test_what_is_no_frame_is_refused():
    with pytest.raises(ValueError, match="no frames"):
        Unframer().feed(b"Traceback (most recent call last)")
    with pytest.raises(ValueError, match="too many"):
        frame({}, _Long())


class _Long(bytes):
    def __len__(self):
        return MOST


def test_a_question_has_the_same_key_on_the_other_side():
    head = Head("openai/x", (Message("system", "Answer."),), {"temperature": 0.5})
    blocks = ({"type": "text", "text": "what?"},)
    asked = Request(
        head, (Message("user", blocks), Message("assistant", "a", {"tool_calls": []})), 7, False, b"\1\2"
    )
    again = told.request_untold(told.head_untold(told.head_told(head)), told.request_told(asked))
    assert again == asked
    assert (again.key(), again.private, again.rollout_id) == (asked.key(), b"\1\2", 7)


@pytest.mark.parametrize("cached", [True, False])
def test_an_answer_comes_back_whole(cached):
    usage = Usage(1, 2, 0.5, 3, 4, 5)
    answer = Response((Choice("a", "stop", {"reasoning_content": "b"}),), usage, "m", "r", cached)
    assert told.response_untold(*told.response_told(answer)) == answer


def test_a_ticket_comes_back_as_one_that_has_counted_nothing():
    ticket = Ticket("run", "step", "row", 3)
    ticket.path, ticket.fresh, ticket.spoiled, ticket.calls = "/part", True, {b"\1"}, 5
    ticket.instead = {b"\1": (7, b"\2")}
    again = told.ticket_untold(told.ticket_told(ticket))
    for name in ("run_id", "step", "row_id", "attempt", "path", "fresh", "spoiled", "instead"):
        assert getattr(again, name) == getattr(ticket, name)
    assert again.calls == 0


class Odd(Exception):
    """Of nobody's table."""


@pytest.mark.parametrize(
    "error",
    [KeyError("a"), ValueError("x", 3), RecordError("no field"), BudgetExceeded("spent"), OSError(2, "gone")],
)
def test_known_failures_keep_their_class(error):
    again = told.raised_again(told.raised(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_what_no_restart_helped_keeps_its_class():
    again = told.raised_again(told.raised(RestartsExceeded("search failed")))
    assert (type(again), again.scope) == (RestartsExceeded, "flow")


def test_a_class_of_one_s_own_that_concerns_the_flow_arrives_as_its_nearest_one_here():
    class Mine(OutputError):
        def __init__(self):
            super().__init__("the disk is full")

    again = told.raised_again(told.raised(Mine()))
    assert (type(again), again.scope) == (OutputError, "flow")
    assert "Mine: the disk is full" in str(again)


def test_a_failed_call_keeps_what_the_engine_acts_on():
    error = LMRateLimitError("slow down", model="openai/x", status=429, retry_after=1.5)
    again = told.raised_again(told.raised(error))
    assert type(again) is LMRateLimitError
    assert (again.model, again.status, again.retry_after) == ("openai/x", 429, 1.5)


def test_an_unreadable_answer_keeps_its_text():
    again = told.raised_again(told.raised(AdapterParseError("ChatAdapter", None, "blah", "no field")))
    assert isinstance(again, AdapterParseError)
    assert (again.lm_response, again.reason) == ("blah", "no field")


@pytest.mark.parametrize(
    "error", [Odd("what"), StopIteration(3), UnicodeDecodeError("utf-8", b"x", 0, 1, "y")]
)
def test_other_classes_are_named_and_not_looked_up(error):
    again = told.raised_again(told.raised(error))
    assert isinstance(again, (told.PartError, UnicodeDecodeError))
    assert type(error).__name__ in f"{type(again).__name__} {again}"
    assert isinstance(again, (RowError, ValueError))


def test_a_failure_says_where_it_was():
    with pytest.raises(Odd) as caught:
        raise Odd("here")
    assert "test_frames.py, line " in told.raised_again(told.raised(caught.value)).where_in_worker
