"""Our operator in bytewax's own dataflows, under bytewax's own tools."""

import asyncio
import threading
from datetime import timedelta

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main

import dspy_stream.operators as dsop
from dspy_stream.configuration import configure
from dspy_stream.lm.cache import DictJournal
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Module, Predict
from dspy_stream.program import Example
from dspy_stream.rows import Origin, Row
from dspy_stream.stream.codec import freeze


@pytest.fixture(autouse=True)
def own_journal():
    configure(journal=DictJournal())
    yield
    configure(journal=None, lm=None)


def asked(request):
    return request.tail[0].content.split("[[ ## question ## ]]\n")[1].split("\n")[0]


def shout(**options):
    options.setdefault("cache", True)
    return ScriptedLM(lambda request: {"answer": asked(request).upper()}, **options)


def predict(lm):
    made = Predict("question -> answer")
    made.lm = lm
    return made


def flow_of(items, program, *, batch=1, **options):
    done, failed = [], []
    flow = Dataflow("test")
    stream = op.input("in", flow, TestingSource(items, batch))
    out = dsop.module("answer", stream, program, **options)
    op.output("done", out.done, TestingSink(done))
    op.output("failed", out.failed, TestingSink(failed))
    return flow, done, failed


def questions(count):
    return [{"question": f"q{number}"} for number in range(count)]


def test_mappings_come_out_as_mappings_with_the_outputs():
    flow, done, failed = flow_of(questions(20), predict(shout()))
    run_main(flow)
    assert sorted((item["question"], item["answer"]) for item in done) == sorted(
        (f"q{number}", f"Q{number}") for number in range(20)
    )
    assert all(type(item) is dict for item in done)
    assert failed == []


def test_rows_come_out_as_rows():
    row = Row("r1", {"question": "q"}, Origin("mine", "p", 3))
    flow, done, _ = flow_of([row], predict(shout()))
    run_main(flow)
    assert done == [row.with_fields(answer="Q")]


def test_two_equal_items_come_out_twice():
    lm = shout()
    flow, done, _ = flow_of([{"question": "same"}] * 3, predict(lm))
    run_main(flow)
    assert len(done) == 3
    assert lm.call_count == 1


def test_a_failure_goes_to_the_other_stream():
    lm = ScriptedLM(lambda request: "bad" if asked(request) == "q1" else {"answer": "x", "number": 1})
    program = Predict("question -> answer, number: int")
    program.lm = lm
    flow, done, failed = flow_of(questions(3), program)
    run_main(flow)
    assert sorted(item["question"] for item in done) == ["q0", "q2"]
    assert [(letter.stage, letter.error["code"]) for letter in failed] == [("parse", "parse")]
    assert b'"q1"' in failed[0].raw


def test_an_item_that_is_no_mapping_fails_and_the_others_go_on():
    flow, done, failed = flow_of(["a text", *questions(2), (1, {"question": "q"})], predict(shout()))
    run_main(flow)
    assert sorted(item["answer"] for item in done) == ["Q0", "Q1"]
    assert [(letter.stage, letter.error["code"], letter.raw) for letter in failed] == [
        ("check", "bad_item", b"'a text'"),
        ("check", "bad_item", b"(1, {'question': 'q'})"),
    ]
    assert "not str" in failed[0].error["message"]


def test_pairs_and_examples_come_out_as_what_they_were():
    items = [("k", {"question": "q0"}), Example(question="q1"), ("k", Example(question="q2"))]
    flow, done, failed = flow_of(items, predict(shout()), ordered=True)
    run_main(flow)
    assert failed == []
    assert sorted(map(repr, done)) == sorted(
        map(
            repr,
            [
                ("k", {"question": "q0", "answer": "Q0"}),
                Example(question="q1", answer="Q1"),
                ("k", Example(question="q2", answer="Q2")),
            ],
        )
    )


def test_the_limit_holds_and_is_used():
    flying = most = 0

    async def count(request):
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.002)
        flying -= 1
        return {"answer": "x"}

    flow, done, _ = flow_of(questions(60), predict(ScriptedLM(count)), batch=60, capacity=6)
    run_main(flow)
    assert len(done) == 60
    assert most == 6


def test_ordered_keeps_the_order_of_what_comes_in():
    async def slow_first(request):
        await asyncio.sleep(0.03 if asked(request) in ("q0", "q5") else 0)
        return {"answer": "x"}

    rows = [Row(f"r{number}", {"question": f"q{number}"}, Origin("m", "p", number)) for number in range(12)]
    flow, done, _ = flow_of(rows, predict(ScriptedLM(slow_first)), batch=12, ordered=True)
    run_main(flow)
    assert [row.question for row in done] == [f"q{number}" for number in range(12)]
    flow, done, _ = flow_of(questions(12), predict(ScriptedLM(slow_first)), batch=12, ordered=True)
    run_main(flow)
    assert done == [{"question": f"q{number}", "answer": "x"} for number in range(12)]
    pairs = [(f"k{number % 3}", item) for number, item in enumerate(questions(12))]
    flow, done, _ = flow_of(pairs, predict(ScriptedLM(slow_first)), batch=12, ordered=True)
    run_main(flow)
    assert [item["question"] for key, item in done if key == "k1"] == ["q1", "q4", "q7", "q10"]


def test_timeout_and_retries():
    turns = []

    async def answer(request):
        turns.append(asked(request))
        if len(turns) == 1:
            await asyncio.sleep(3600)
        return {"answer": "x"}

    flow, done, failed = flow_of(questions(1), predict(ScriptedLM(answer)), timeout=0.05, retries=1)
    run_main(flow)
    assert (len(done), failed, turns) == (1, [], ["q0", "q0"])


def test_a_module_with_several_calls():
    class Twice(Module):
        def __init__(self, lm):
            self.ask = predict(lm)

        def forward(self, question):
            return {"answer": self.ask(question=self.ask(question=question).answer + "!").answer}

    flow, done, _ = flow_of(questions(5), Twice(shout()))
    run_main(flow)
    assert sorted(item["answer"] for item in done) == [f"Q{number}!" for number in range(5)]


def test_two_operators_in_one_flow():
    done = []
    flow = Dataflow("test")
    lm = shout()
    stream = op.input("in", flow, TestingSource(questions(3)))
    first = dsop.module("first", stream, predict(lm))
    renamed = op.map("rename", first.done, lambda item: {"question": item["answer"] + "?"})
    second = dsop.module("second", renamed, predict(lm))
    op.output("out", second.done, TestingSink(done))
    op.output("a", first.failed, TestingSink([]))
    op.output("b", second.failed, TestingSink([]))
    run_main(flow)
    assert sorted(item["answer"] for item in done) == ["Q0?", "Q1?", "Q2?"]


def test_on_two_workers():
    flow, done, _ = flow_of(questions(50), predict(shout()), batch=10)
    cluster_main(flow, [], 0, worker_count_per_proc=2)
    assert len(done) == 50


class TestRecovery:
    @pytest.fixture
    def recovery(self, tmp_path):
        init_db_dir(tmp_path, 1)
        return RecoveryConfig(str(tmp_path))

    def test_items_in_flight_at_an_abort_come_out_after_it_and_calls_are_not_repeated(self, recovery):
        gate = asyncio.Event()

        async def answer(request):
            if asked(request) in ("q3", "q7") and not gate.is_set():
                await asyncio.sleep(0.1)
            return {"answer": asked(request).upper()}

        lm = ScriptedLM(answer, cache=True)
        items = [*questions(10), TestingSource.ABORT(), *({"question": f"r{n}"} for n in range(5))]
        flow, done, _ = flow_of(items, predict(lm))
        run_main(flow, epoch_interval=timedelta(0), recovery_config=recovery)
        early = len(done)
        assert early < 15
        gate.set()
        run_main(flow, epoch_interval=timedelta(0), recovery_config=recovery)
        assert {item["question"] for item in done} == {f"q{n}" for n in range(10)} | {
            f"r{n}" for n in range(5)
        }
        assert all(item["answer"] == item["question"].upper() for item in done)
        assert lm.call_count <= 15 + 2, "only calls that were cut off are made again"

    def test_after_an_end_of_file_the_next_run_goes_on(self, recovery):
        items = [*questions(3), TestingSource.EOF(), {"question": "r"}]
        lm = shout()
        flow, done, _ = flow_of(items, predict(lm))
        run_main(flow, epoch_interval=timedelta(0), recovery_config=recovery)
        assert len(done) == 3
        run_main(flow, epoch_interval=timedelta(0), recovery_config=recovery)
        assert [item["question"] for item in done[3:]] == ["r"]
        assert lm.call_count == 4


def test_ids_of_equal_mappings_are_equal_and_follow_the_content():
    from dspy_stream.operators import _row

    one, again, other = (_row({"a": number}, "s") for number in (1, 1, 2))
    assert one.id == again.id != other.id
    assert freeze(one)[0] == one.id


def test_a_module_with_options_says_where_its_code_runs():
    seen = set()

    class Where(Module):
        def forward(self, question):
            seen.add(threading.current_thread().name.rsplit("_", 1)[0])
            return {"answer": question.upper()}

    flow, done, failed = flow_of(questions(20), Where().using(isolation="thread", workers=2))
    run_main(flow)
    assert sorted(item["answer"] for item in done) == sorted(f"Q{number}" for number in range(20))
    assert failed == []
    assert seen == {"part_Where"}
