"""The decisions of the batch lane, in virtual time."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.errors import (
    FlowError,
    LMBatchError,
    LMBatchHalted,
    LMInvalidRequestError,
    LMServerError,
    LMTransportError,
)
from dspy_stream.lm.batch.codec import Limits, State
from dspy_stream.lm.batch.plan import (
    BatchOptions,
    Collector,
    Outage,
    adopt,
    backoff,
    candidates,
    interval,
    judge,
    too_old,
)

OPTIONS = BatchOptions(linger=10, age=60, max_requests=3, max_bytes=100)
ROOMY = Limits(1000, 10_000)


def filled(*keys, options=OPTIONS, limits=ROOMY, size=10, now=0.0):
    made = Collector(options, limits)
    for key in keys:
        made.add(key, size, now)
    return made


def test_a_batch_goes_when_no_request_has_come_for_a_while():
    collector = filled(b"a")
    collector.add(b"b", 10, now=8.0)
    assert collector.take(17.9) == []
    assert collector.wake() == 18.0
    assert collector.take(18.0) == [b"a", b"b"]
    assert collector.wake() is None
    assert len(collector) == 0


def test_requests_that_keep_coming_do_not_put_it_off_for_ever():
    collector = Collector(BatchOptions(linger=10, age=60), ROOMY)
    for second in range(0, 60, 5):
        collector.add(b"%d" % second, 1, now=float(second))
        assert collector.take(float(second)) == []
    assert collector.wake() == 60.0
    assert len(collector.take(60.0)) == 12


def test_a_full_batch_goes_at_once_and_what_is_over_waits_on():
    collector = filled(b"a", b"b", b"c", b"d")
    assert collector.take(0.0) == [b"a", b"b", b"c"]
    assert collector.take(0.0) == []
    assert collector.wake() == 10.0


def test_bytes_fill_a_batch_too_and_a_huge_request_goes_alone():
    collector = filled(b"a", b"b", size=60)
    assert collector.take(0.0) == [b"a"]
    collector.add(b"huge", 5000, now=1.0)
    assert collector.take(1.0) == [b"b"]
    assert collector.take(1.0) == [b"huge"]


def test_the_providers_limits_hold_whatever_the_options_say():
    collector = filled(b"a", b"b", options=BatchOptions(max_requests=10**6), limits=Limits(2, 10**6))
    assert collector.take(0.0) == [b"a", b"b"]


def test_what_nobody_wants_any_more_is_not_sent():
    collector = filled(b"a", b"b")
    collector.remove(b"a")
    collector.remove(b"never there")
    assert b"a" not in collector
    assert collector.take(10.0) == [b"b"]


def test_nothing_is_sent_while_the_account_is_full():
    collector = filled(b"a", b"b", b"c")
    collector.hold(100.0)
    assert collector.take(99.0) == []
    assert collector.wake() == 100.0
    collector.release()
    assert collector.take(50.0) == [b"a", b"b", b"c"]


def test_halving_ends_at_one():
    collector = filled(b"a", b"b", b"c")
    assert collector.halve(3)
    assert collector.take(0.0) == [b"a"]
    assert not collector.halve(1)


@given(
    st.lists(st.tuples(st.integers(1, 80), st.floats(0, 20)), min_size=1, max_size=60),
    st.integers(1, 7),
    st.integers(20, 200),
)
def test_every_request_is_taken_once_in_order_within_the_limits(arrivals, most, size):
    collector = Collector(BatchOptions(linger=5, age=30), Limits(most, size))
    now, taken, sizes = 0.0, [], {}
    for number, (each, pause) in enumerate(arrivals):
        now += pause
        key = b"%d" % number
        sizes[key] = each
        collector.add(key, each, now)
        while batch := collector.take(now):
            taken.append(batch)
    while (wake := collector.wake()) is not None:
        now = max(now, wake)
        batch = collector.take(now)
        assert batch, "the time it names is the time it is due"
        taken.append(batch)
    assert [key for batch in taken for key in batch] == list(sizes)
    for batch in taken:
        assert len(batch) <= most
        assert len(batch) == 1 or sum(sizes[key] for key in batch) <= size


def test_looks_grow_rarer_from_five_seconds_to_five_minutes():
    rng = random.Random(1)
    waits = [interval(looks, BatchOptions(), rng) for looks in range(40)]
    assert 4.5 <= waits[0] <= 5.5
    assert all(270 <= wait <= 330 for wait in waits[15:])
    assert interval(10**9, BatchOptions(), rng) <= 330
    assert len(set(waits[15:])) > 10, "spread, so that many flows do not look at once"


def test_a_day_of_waiting_takes_a_few_hundred_looks():
    rng, now, looks = random.Random(1), 0.0, 0
    while now < 24 * 3600:
        now += interval(looks, BatchOptions(), rng)
        looks += 1
    assert looks < 310


def test_failures_back_off_and_respect_what_the_provider_asks():
    rng = random.Random(1)
    assert backoff(1, 50.0, BatchOptions(), rng) == 50.0
    assert 2.5 <= backoff(1, None, BatchOptions(), rng) <= 5.0
    assert backoff(10**6, None, BatchOptions(), rng) <= 60.0


def test_an_outage_is_counted_from_the_first_failure_not_from_the_last_success():
    outage = Outage(300.0)
    outage.passed()
    outage.failed(LMTransportError("down"), 100_000.0)
    outage.failed(LMTransportError("down"), 100_299.0)
    outage.passed()
    outage.failed(LMTransportError("down"), 200_000.0)
    with pytest.raises(LMBatchHalted, match="has not answered for 301 s, or refused to: down"):
        outage.failed(LMTransportError("down"), 200_301.0)


def test_a_good_error_is_the_rows_and_a_passing_one_is_tried_again():
    refused = LMInvalidRequestError("400")
    assert judge(refused, 1, OPTIONS) is refused
    assert judge(LMServerError("500"), 1, OPTIONS) is None
    assert judge(LMServerError("500"), 2, OPTIONS) is None
    last = judge(LMServerError("500: oh", status=500), 3, OPTIONS)
    assert isinstance(last, LMBatchError)
    assert str(last) == "failed in 3 batches, in the last one with: 500: oh"
    once = judge(LMServerError("500: oh"), 1, BatchOptions(attempts=1))
    assert str(once) == "failed in its only batch with: 500: oh"
    assert (last.attempts, last.status, last.retryable, last.scope) == (3, 500, False, "row")


def state(batch_id, *, record=None, total=5, created=1000.0, phase="running"):
    return State(batch_id, phase, phase, 0, total, created, record)


def test_a_named_batch_is_found_by_its_name():
    listed = [state("b2", record="other"), state("b1", record="mine"), state("b0")]
    assert adopt("mine", listed).batch_id == "b1"
    assert adopt("never sent", listed) is None


def test_unnamed_candidates_fit_in_number_and_time_and_are_not_known():
    listed = [
        state("running"),
        state("ended", phase="ended"),
        state("known"),
        state("other size", total=6),
        state("much later", created=5000.0),
        state("earlier", created=100.0),
    ]
    found = candidates(listed, requests=5, tried=1000.0, doubt=60.0, known=frozenset({"known"}))
    assert [one.batch_id for one in found] == ["ended", "running"]
    assert too_old(listed[-1], 1000.0)
    assert not too_old(listed[0], 1000.0)


@pytest.mark.parametrize(
    "wrong",
    [{"linger": -1}, {"max_requests": 0}, {"attempts": 0}, {"poll": (0, 5)}, {"poll": (9, 5)}, {"doubt": -1}],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(FlowError, match="BatchOptions"):
        BatchOptions(**wrong)
