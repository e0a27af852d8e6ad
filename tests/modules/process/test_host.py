"""What parent and worker say to each other: the parent's side, and a worker that is played."""

import asyncio

import pytest

import dspy_stream as ds
from dspy_stream.engine import Ticket
from dspy_stream.modules.process import told
from dspy_stream.modules.process.frames import Frame, Unframer
from dspy_stream.modules.process.host import _Conversation, _Told
from dspy_stream.modules.process.scopes import Described
from dspy_stream.modules.scope import TICKET
from dspy_stream.program.carried import pack
from dspy_stream.types import Head, Message, Request

HEAD = Head("scripted", (Message("system", "Answer."),), {})
REQUEST = Request(HEAD, (Message("user", "q"),))
TOLD = told.head_told(HEAD)
FAILED = Frame({"kind": "raised", "spoiled": [], "instead": [], **told.raised(ValueError("bad row"))})
DONE = Frame({"kind": "done", "spoiled": [], "instead": []}, pack({"a": 1}))


class Played:
    """A worker that says what it is given, and the last of it once so many questions are answered."""

    def __init__(self, questions=1):
        self.questions = questions
        self.scopes, self.heads, self.row = {}, {}, 0
        self.says, self.heard = [], []
        self.answered = asyncio.Event()

    def scope(self, key):
        return self.scopes.setdefault(key, len(self.scopes)), True

    def send(self, data):
        found = [said for said in Unframer().feed(data) if said.head["kind"] in ("answer", "refused")]
        self.heard += found
        if len(self.heard) >= self.questions:
            self.answered.set()

    async def receive(self):
        if len(self.says) == 1:
            await self.answered.wait()
        return self.says.pop(0)

    async def ended(self):
        return "it is played"


def asks(number, of, **more):
    head = {"kind": "ask", "number": number, "row": None, "lm": 0, "of": of, **told.request_told(REQUEST)}
    return Frame({**head, **more})


async def row(worker, *says, seen=None):
    def answer(request):
        if seen is not None:
            seen.append(request.model)
        return {"a": "x"}

    lm = ds.ScriptedLM(answer)
    described = Described({}, b"", b"scope", (lm,), (lm.connect(),))
    worker.says = list(says)
    ticket = Ticket("run", "step", "row", 0)
    token = TICKET.set(ticket)
    try:
        return await asyncio.wait_for(_Conversation(worker, described).hold(b""), 5.0)
    finally:
        TICKET.reset(token)


def test_the_head_of_a_question_outlives_a_row_that_fails_at_once():
    """Question and failure come in the same read, so that nothing puts the question any more."""

    async def main():
        worker = Played()
        worker.answered.set()
        with pytest.raises(_Told) as failed:
            await row(worker, asks(1, 0, head=TOLD), FAILED)
        assert str(failed.value.error) == "bad row"
        worker.answered.clear()
        return await row(worker, asks(2, 0), DONE), worker.heard

    made, (heard,) = asyncio.run(main())
    assert made == {"a": 1}
    assert (heard.head["kind"], heard.head["number"]) == ("answer", 2)


def test_a_worker_that_was_ready_as_its_time_ran_out_is_ready():
    """Its last word about that is none about the row."""

    async def main():
        worker = Played()
        worker.answered.set()
        return await row(worker, Frame({"kind": "late", "where": "a.py"}), DONE)

    assert asyncio.run(main()) == {"a": 1}


@pytest.mark.parametrize("wrong", [{"tail": None}, {"lm": 7}, {"private": "no hex"}])
def test_a_question_that_cannot_be_put_is_refused(wrong):
    """Else the code in the worker would wait for ever."""

    async def main():
        worker = Played()
        return await row(worker, asks(1, 0, head=TOLD, **wrong), DONE), worker.heard

    made, (heard,) = asyncio.run(main())
    assert made == {"a": 1}
    assert (heard.head["kind"], heard.head["number"]) == ("refused", 1)


def test_questions_whose_heads_are_not_kept_are_told_apart():
    """Both come in the same read under the same number."""

    async def main():
        worker, seen = Played(2), []
        other = told.head_told(Head("other", HEAD.messages, {}))
        await row(worker, asks(1, -1, head=TOLD), asks(2, -1, head=other), DONE, seen=seen)
        return seen

    assert asyncio.run(main()) == ["scripted", "other"]
