import gc

import dspy_stream as ds
from dspy_stream.stream.collector import seldom_collected


def test_a_flow_runs_with_fewer_collections_and_leaves_no_trace():
    before = gc.get_threshold()
    seen = []

    def look(row):
        seen.append((gc.get_threshold()[0], gc.get_freeze_count()))
        return row.fields

    ds.Stream.from_iterable([{"n": 1}]).map(look).run(state=None)
    assert seen[0][0] > before[0]
    assert seen[0][1] > 0
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_flows_inside_one_another_end_it_once():
    before = gc.get_threshold()
    with seldom_collected():
        with seldom_collected():
            inner = gc.get_threshold()
        assert gc.get_threshold() == inner != before
    assert gc.get_threshold() == before


def test_a_collector_that_was_switched_off_stays_off():
    gc.disable()
    try:
        with seldom_collected():
            assert not gc.isenabled()
            assert gc.get_freeze_count() == 0
        assert not gc.isenabled()
    finally:
        gc.enable()
