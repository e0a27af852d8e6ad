import asyncio
import gc

import dspy_stream as ds
from dspy_stream.collector import seldom_collected
from dspy_stream.lm.scripted import ScriptedLM


def test_a_flow_runs_with_fewer_collections_and_leaves_no_trace():
    before = gc.get_threshold()
    seen = []

    def look(row):
        seen.append(gc.get_threshold()[0])
        return row.fields

    ds.Stream.from_iterable([{"n": 1}]).map(look).run(state=None)
    assert seen[0] > before[0]
    assert gc.get_threshold() == before


def test_a_streamed_program_runs_with_fewer_collections_until_it_is_closed():
    before = gc.get_threshold()

    async def main():
        stream = ds.streamify(ds.Predict("question -> answer"))(question="?")
        async for _ in stream:
            within = gc.get_threshold()
            break
        await stream.aclose()
        return within

    with ds.context(lm=ScriptedLM([{"answer": "Paris"}])):
        assert asyncio.run(main())[0] > before[0]
    assert gc.get_threshold() == before


def test_flows_inside_one_another_end_it_once():
    before = gc.get_threshold()
    with seldom_collected():
        with seldom_collected():
            inner = gc.get_threshold()
        assert gc.get_threshold() == inner != before
    assert gc.get_threshold() == before


def test_a_collector_that_was_switched_off_stays_off():
    before = gc.get_threshold()
    gc.disable()
    try:
        with seldom_collected():
            assert not gc.isenabled()
            assert gc.get_threshold() == before
        assert not gc.isenabled()
    finally:
        gc.enable()
