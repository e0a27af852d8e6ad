"""The question before the question: asked once, heard or not, and the row's own steps none the wiser."""

import asyncio
import contextvars

import pytest

from dspy_stream.errors import BudgetExceeded, LMInvalidRequestError, LMServerError
from dspy_stream.lm.witness import ON_TRIAL
from dspy_stream.runtime import Ask
from dspy_stream.stream.probe import behind, probed
from dspy_stream.types import Choice, Head, Message, Request, Response

OWN = Request(Head("m"), (Message("user", "the row's own"),))
YES = Response((Choice("yes"),))


async def client(request):
    raise NotImplementedError


def steps(caught=None):
    try:
        answer = yield Ask(client, OWN)
    except LMServerError as error:
        caught.append(error)
        answer = yield Ask(client, OWN)
    return answer.text


def value_of(running, answer):
    with pytest.raises(StopIteration) as ended:
        running.send(answer)
    return ended.value.value


def test_another_question_comes_first_and_is_kept_nowhere():
    heard = []
    running = probed(steps(), heard.append)
    first = next(running)
    assert (first.client, first.request.model) == (client, "m")
    assert first.request.key() != OWN.key()
    assert first.request.journal_key() is None
    assert first.listener is None
    assert heard == []
    assert running.send(YES).request is OWN
    assert heard == ["m"]
    assert value_of(running, Response((Choice("answered"),))) == "answered"
    assert heard == ["m"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(LMServerError("down", status=503), None), (LMInvalidRequestError("no", status=400), "m")],
)
def test_a_refusal_is_an_answer_and_a_failure_is_none(error, expected):
    heard = []
    running = probed(steps(), heard.append)
    next(running)
    assert running.throw(error).request is OWN
    assert heard == [expected]


def test_what_the_row_s_own_call_raises_reaches_its_code():
    caught = []
    running = probed(steps(caught), lambda model: None)
    next(running)
    running.send(YES)
    error = LMServerError("down")
    assert running.throw(error).request is OWN
    assert caught == [error]
    assert value_of(running, Response((Choice("after all"),))) == "after all"


def test_a_used_up_budget_and_an_end_from_outside_are_told_of():
    heard = []
    running = probed(steps(), heard.append)
    next(running)
    with pytest.raises(BudgetExceeded):
        running.throw(BudgetExceeded("used up"))
    running = probed(steps(), heard.append)
    next(running)
    running.close()
    assert heard == [None, None]


def test_steps_that_ask_nothing_are_left_alone():
    def silent():
        return 5
        yield

    heard = []
    running = probed(silent(), heard.append)
    with pytest.raises(StopIteration) as ended:
        next(running)
    assert ended.value.value == 5
    assert heard == [None]

    def waits():
        return (yield "something else")

    running = probed(waits(), heard.append)
    assert next(running) == "something else"
    assert value_of(running, 7) == 7


def test_a_model_that_is_known_is_asked_before_steps_of_any_kind():
    async def failing(request):
        raise NotImplementedError

    def waits():
        return (yield "something else")

    heard = []
    running = probed(waits(), heard.append, (failing, "other"))
    asked = next(running)
    assert (asked.client, asked.request.model, asked.request.journal_key()) == (failing, "other", None)
    assert heard == []
    assert running.send(YES) == "something else"
    assert heard == ["other"]
    assert value_of(running, 7) == 7


def test_a_known_model_that_does_not_answer_is_told_of_and_steps_go_on():
    heard = []
    running = probed(steps(), heard.append, (client, "m"))
    next(running)
    assert running.throw(LMServerError("down", status=503)).request is OWN
    running = probed(steps(), heard.append, (client, "m"))
    next(running)
    running.close()
    assert heard == [None, None]


@pytest.mark.parametrize("vouched", [True, False])
def test_a_suspected_row_waits_for_the_question_of_another_and_is_on_trial_where_it_is_answered(vouched):
    async def go():
        question = asyncio.Event()
        running = behind(steps(), question, lambda: vouched)
        waiting = asyncio.ensure_future(next(running))
        await asyncio.sleep(0)
        assert not waiting.done()
        question.set()
        assert await waiting
        assert running.send(True).request is OWN
        assert ON_TRIAL.get() is vouched
        return value_of(running, YES)

    assert asyncio.run(go()) == "yes"


@pytest.mark.parametrize("failing", [None, (client, "m")])
def test_a_row_is_on_trial_once_the_question_is_answered(failing):
    def go(answered):
        running = probed(steps(), lambda model: None, failing)
        next(running)
        assert not ON_TRIAL.get()
        if answered:
            running.send(YES)
        else:
            running.throw(LMServerError("down", status=503))
        return ON_TRIAL.get()

    assert contextvars.copy_context().run(go, True)
    assert not contextvars.copy_context().run(go, False)
