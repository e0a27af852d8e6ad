"""One row through one predictor: render, call, parse, repair, count."""

import asyncio

import pytest

from dspy_stream.adapters import ChatAdapter, JSONAdapter
from dspy_stream.engine import Plan, Ticket, ask
from dspy_stream.errors import AdapterParseError, AdapterRenderError, LMIncompleteError, LMServerError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.program import ensure_signature
from dspy_stream.runtime import perform
from dspy_stream.state.journal import MemoryJournal
from dspy_stream.state.recorder import row_prefix
from dspy_stream.types import Choice, Head, Request, Response, Usage

NUMBER = ensure_signature("question -> number: int")


def written(number):
    return f"[[ ## number ## ]]\n{number}\n\n[[ ## completed ## ]]"


def plan_of(lm, *, adapter=None, journal=None, **changes):
    prepared = (adapter or ChatAdapter()).prepare(NUMBER)
    return Plan(prepared, Head(lm.model, prepared.head), lm.connect(journal), **changes)


def answer(plan, ticket=None, question="q"):
    return perform(ask(plan, {"question": question}, ticket or Ticket()))


def final_error(plan, ticket):
    with pytest.raises(AdapterParseError) as caught:
        answer(plan, ticket)
    return caught.value


class TestOneCall:
    def test_a_good_answer_takes_one_call(self):
        lm = ScriptedLM([written(4)])
        got = answer(plan_of(lm))
        assert got.completions == ({"number": 4},)
        assert lm.call_count == 1

    def test_the_request_is_the_plans_head_and_the_rows_tail(self):
        lm = ScriptedLM([written(4)])
        plan = plan_of(lm)
        answer(plan, question="How many?")
        (request,) = lm.calls
        assert request.head is plan.head
        assert [message.role for message in request.messages] == ["system", "user"]
        assert "How many?" in request.tail[0].content

    def test_inputs_that_cannot_be_written_cost_no_call(self):
        lm = ScriptedLM([])
        with pytest.raises(AdapterRenderError, match="question"):
            perform(ask(plan_of(lm), {}, Ticket()))
        assert lm.call_count == 0

    def test_a_failed_call_is_not_repaired(self):
        lm = ScriptedLM([LMServerError("down"), written(4)])
        with pytest.raises(LMServerError):
            answer(plan_of(lm))
        assert lm.call_count == 1

    def test_a_response_without_a_choice_is_incomplete(self):
        with pytest.raises(LMIncompleteError, match="no completion"):
            answer(plan_of(ScriptedLM([Response(())])))


class TestRepair:
    def test_an_unreadable_answer_is_asked_for_once_more_with_the_reason(self):
        lm = ScriptedLM([written("four"), written(4)])
        assert answer(plan_of(lm)).completions == ({"number": 4},)
        first, second = lm.calls
        assert second.messages[: len(first.messages)] == first.messages
        said, request = second.messages[len(first.messages) :]
        assert (said.role, request.role) == ("assistant", "user")
        assert said.content == written("four")
        assert "number" in request.content
        assert "four" in request.content

    def test_the_second_unreadable_answer_is_the_end(self):
        lm = ScriptedLM([written("four"), written("five"), written(4)])
        error = final_error(plan_of(lm), Ticket())
        assert lm.call_count == 2
        assert error.lm_response == written("five")
        assert error.adapter_name == "ChatAdapter"

    @pytest.mark.parametrize("repairs", [0, 1, 3])
    def test_the_number_of_repairs_is_the_plans(self, repairs):
        lm = ScriptedLM(["nothing"] * 10)
        final_error(plan_of(lm, repairs=repairs), Ticket())
        assert lm.call_count == repairs + 1

    def test_each_repair_sees_all_that_was_said(self):
        lm = ScriptedLM([written("a"), written("b"), written(1)])
        answer(plan_of(lm, repairs=2))
        assert [len(request.tail) for request in lm.calls] == [1, 3, 5]

    def test_the_json_adapter_repairs_too(self):
        lm = ScriptedLM(['{"number": "x"}', '{"number": 3}'])
        assert answer(plan_of(lm, adapter=JSONAdapter())).completions == ({"number": 3},)


class TestCompletions:
    def reply(self, *texts):
        return Response(tuple(Choice(text) for text in texts))

    def test_all_that_can_be_read_are_returned_in_order(self):
        lm = ScriptedLM([self.reply(written(3), "nonsense", written(1))])
        assert answer(plan_of(lm)).completions == ({"number": 3}, {"number": 1})
        assert lm.call_count == 1

    def test_none_readable_is_repaired_like_one(self):
        lm = ScriptedLM([self.reply("a", "b"), self.reply(written(1), written(2))])
        assert answer(plan_of(lm)).completions == ({"number": 1}, {"number": 2})

    def test_the_first_failure_is_reported(self):
        lm = ScriptedLM([self.reply("one", "two")])
        with pytest.raises(AdapterParseError) as caught:
            answer(plan_of(lm, repairs=0))
        assert caught.value.lm_response == "one"


class TestTicket:
    def test_counts_calls_hits_and_tokens_by_model(self):
        journal = MemoryJournal()
        reply = Response((Choice(written(4)),), Usage(10, 2, 0.5), "scripted/model")
        lm = ScriptedLM([reply])
        plan = plan_of(lm, journal=journal)
        first, second = Ticket(), Ticket()
        answer(plan, first)
        answer(plan, second)
        assert (first.calls, first.hits) == (1, 0)
        assert first.usage == {"scripted/model": Usage(10, 2, 0.5)}
        assert (second.calls, second.hits) == (1, 1)

    def test_adds_up_over_repairs(self):
        replies = [Response((Choice(text),), Usage(10, 2, 0.5)) for text in (written("x"), written(4))]
        ticket = Ticket()
        answer(plan_of(ScriptedLM(replies)), ticket)
        assert ticket.calls == 2
        assert ticket.usage == {"scripted/model": Usage(20, 4, 1.0)}

    def test_an_unread_answer_is_counted(self):
        ticket = Ticket()
        final_error(plan_of(ScriptedLM(["x", "y"])), ticket)
        assert ticket.calls == 2

    def test_again_is_the_next_attempt_at_the_same_row(self):
        ticket = Ticket("run", "step", "row")
        ticket.calls = 3
        made = ticket.again()
        assert (made.run_id, made.step, made.row_id, made.attempt) == ("run", "step", "row", 2)
        assert made.calls == 0


class TestSpoiledAnswers:
    def test_a_second_attempt_asks_for_other_answers(self):
        journal = MemoryJournal()
        lm = ScriptedLM(["bad", "worse", written(4)])
        plan = plan_of(lm, journal=journal)
        ticket = Ticket("run", "step", "row")
        final_error(plan, ticket)
        assert answer(plan, ticket.again()).completions == ({"number": 4},)
        first, repair, second = lm.calls
        assert first.messages == second.messages
        assert first.key() != second.key()
        assert (first.rollout_id, repair.rollout_id) == (None, None)
        assert second.rollout_id is not None

    def test_without_spoiled_answers_an_attempt_asks_the_same(self):
        journal = MemoryJournal()
        lm = ScriptedLM([written(4)])
        plan = plan_of(lm, journal=journal)
        ticket = Ticket("run", "step", "row")
        answer(plan, ticket)
        assert answer(plan, ticket.again()).response.cached
        assert lm.call_count == 1

    def test_questions_whose_answers_were_read_keep_them(self):
        journal = MemoryJournal()
        lm = ScriptedLM([written(1), "bad", "bad", written(2)])
        plan = plan_of(lm, journal=journal)
        ticket = Ticket("run", "step", "row")
        answer(plan, ticket, question="good")
        with pytest.raises(AdapterParseError):
            answer(plan, ticket, question="bad")
        again = ticket.again()
        assert answer(plan, again, question="good").response.cached
        assert answer(plan, again, question="bad").completions == ({"number": 2},)

    def test_every_attempt_asks_under_another_rollout(self):
        lm = ScriptedLM(["x"] * 6)
        plan = plan_of(lm, journal=MemoryJournal(), repairs=0)
        ticket = Ticket("run", "step", "row")
        for _ in range(3):
            final_error(plan, ticket)
            ticket = ticket.again()
        rollouts = [request.rollout_id for request in lm.calls]
        assert rollouts[0] is None
        assert len(set(rollouts)) == 3

    def test_rollouts_stay_away_from_those_of_users(self):
        lm = ScriptedLM(["x", written(1)])
        plan = plan_of(lm, rollout_id=7, repairs=0)
        ticket = Ticket("run", "step", "row")
        final_error(plan, ticket)
        answer(plan, ticket.again())
        assert lm.calls[0].rollout_id == 7
        assert lm.calls[1].rollout_id > 1_000_000

    def test_a_retry_asks_anew_what_could_not_be_read_and_finds_it_after_a_crash(self):
        def again(run_id):
            ticket = Ticket(run_id, "step", "row")
            ticket.fresh = True
            assert answer(plan, ticket, question="good").response.cached
            final_error(plan, ticket)  # out of the journal
            assert ticket.replays() == 1
            return ticket.again()

        lm = ScriptedLM([written(0), "bad", written(2), written(3)])
        plan = plan_of(lm, journal=MemoryJournal(), repairs=0)
        assert answer(plan, question="good").completions == ({"number": 0},)
        final_error(plan, Ticket("run", "step", "row"))
        assert answer(plan, again("retry-1")).completions == ({"number": 2},)
        resumed = again("retry-1")
        assert answer(plan, resumed).completions == ({"number": 2},), "a resumed retry pays nothing"
        assert answer(plan, resumed.again()).completions == ({"number": 2},), "nor does its next attempt"
        assert resumed.replays() == 2
        ticket = again("retry-2")
        assert answer(plan, ticket).completions == ({"number": 3},), "the next retry asks again"
        ((question, (rollout, key)),) = ticket.instead.items()
        assert (question, rollout, key) == (lm.calls[1].key(), lm.calls[3].rollout_id, lm.calls[3].key())
        assert lm.call_count == 4


class TestPrivateAnswers:
    def test_outside_a_run_nothing_is_kept(self):
        lm = ScriptedLM([written(1), written(2)])
        journal = MemoryJournal()
        plan = plan_of(lm, journal=journal, cache=False)
        assert answer(plan).completions != answer(plan).completions
        one, other = [request.journal_key() for request in lm.calls]
        assert one != other, "each call has a name of its own, for its attempts"
        assert journal.get(one) is journal.get(other) is None

    def test_a_row_finds_its_own_answer_again_and_no_other(self):
        journal = MemoryJournal()
        lm = ScriptedLM([written(1), written(2)])
        plan = plan_of(lm, journal=journal, cache=False)
        first = answer(plan, Ticket("run", "step", "a"))
        other = answer(plan, Ticket("run", "step", "b"))
        after_crash = answer(plan, Ticket("run", "step", "a"))
        assert [got.completions[0]["number"] for got in (first, other, after_crash)] == [1, 2, 1]
        assert after_crash.response.cached
        assert lm.call_count == 2

    @pytest.mark.parametrize("other", [("run2", "step", "a"), ("run", "step2", "a"), ("run", "step", "b")])
    def test_the_key_is_of_this_run_step_and_row(self, other):
        request = Request.of("m", "q", cache=False)
        assert Ticket("run", "step", "a").private_key(request) != Ticket(*other).private_key(request)

    def test_the_key_is_of_this_very_call(self):
        request = Request.of("m", "q", cache=False)
        ticket = Ticket("run", "step", "a")
        first = ticket.private_key(request)
        ticket.count(Response((Choice("x"),)), "m")
        assert ticket.private_key(request) != first

    def test_the_key_is_of_this_question(self):
        ticket = Ticket("run", "step", "a")
        one, two = Request.of("m", "one", cache=False), Request.of("m", "two", cache=False)
        assert ticket.private_key(one) != ticket.private_key(two)

    def test_the_key_begins_with_the_rows_prefix_so_that_it_can_be_forgotten(self):
        key = Ticket("run", "step", "a").private_key(Request.of("m", "q"))
        assert key.startswith(row_prefix("run", "a"))

    def test_two_samples_of_one_row_differ_and_both_survive_a_crash(self):
        lm = ScriptedLM([written(1), written(2)])
        plan = plan_of(lm, journal=MemoryJournal(), cache=False)

        def both():
            ticket = Ticket("run", "step", "a")
            return [answer(plan, ticket).completions[0]["number"] for _ in range(2)]

        assert both() == [1, 2]
        assert both() == [1, 2]
        assert lm.call_count == 2

    def test_a_retried_attempt_does_not_get_the_unreadable_answer_back(self):
        lm = ScriptedLM(["bad", "worse", written(4)])
        plan = plan_of(lm, journal=MemoryJournal(), cache=False)
        ticket = Ticket("run", "step", "row")
        final_error(plan, ticket)
        assert answer(plan, ticket.again()).completions == ({"number": 4},)


def test_identical_rows_share_one_call_in_flight():
    lm = ScriptedLM({"q": written(4)}, latency=0.01)
    plan = plan_of(lm, journal=MemoryJournal())

    async def one(number):
        from dspy_stream.runtime import aperform

        return await aperform(ask(plan, {"question": "q"}, Ticket("run", "step", str(number))))

    async def main():
        return await asyncio.gather(*(one(number) for number in range(20)))

    from dspy_stream.runtime import run

    got = run(main())
    assert {answer.completions[0]["number"] for answer in got} == {4}
    assert lm.call_count == 1
    assert sum(not answer.response.cached for answer in got) == 1


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        (Choice("", "stop", {"refusal": "I will not"}), "it was refused: I will not"),
        (Choice("no", "content_filter"), "the provider's content filter stopped it"),
        (Choice("", "length"), "it was cut off at the limit of tokens"),
        (Choice("", "stop"), "it is empty"),
    ],
)
@pytest.mark.parametrize("adapter", [ChatAdapter(), JSONAdapter()])
def test_an_answer_that_was_refused_says_so(adapter, choice, why):
    lm = ScriptedLM([Response((choice,), Usage(), "m")] * 2)
    error = final_error(plan_of(lm, adapter=adapter), Ticket())
    assert why in error.reason
    whole = Choice(written(4) if isinstance(adapter, ChatAdapter) else '{"number": 4}', *choice[1:])
    lm = ScriptedLM([Response((whole,), Usage(), "m")])
    assert answer(plan_of(lm, adapter=adapter)).completions == ({"number": 4},)
