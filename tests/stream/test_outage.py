"""Whose fault a missing answer is: evidence, counted row by row, under a clock of our own."""

import random

from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.errors import LMRateLimitError, LMServerError, LMTimeoutError, LMUnavailableError
from dspy_stream.stream.outage import Outage

DOWN = LMServerError("down", model="m")


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["500", "429", "open"])), max_size=200))
def test_without_an_answer_to_anybody_no_row_is_ever_blamed(failures):
    outage = Outage(300.0, 0.0)
    kinds = {"500": DOWN, "429": LMRateLimitError("x", model="m"), "open": LMUnavailableError("x", model="m")}
    for row, kind in failures:
        assert not outage.blames(f"r{row}", kinds[kind], 3)


def test_where_most_fail_bad_luck_is_believed():
    """A server that fails nine rows in ten at random: of 2,000 rows none is given up."""
    rng = random.Random(5)
    for chance in (0.1, 0.5, 0.9):
        outage = Outage(300.0, 0.0)
        waiting = [f"r{n}" for n in range(256)]
        left = 2000 - len(waiting)
        while waiting:
            still = []
            for row in waiting:
                if rng.random() < chance:
                    assert not outage.blames(row, DOWN, 3), f"{row} at {chance}"
                    still.append(row)
                else:
                    outage.answered(["m"], 1.0)
                    outage.ended(row)
            fresh = min(left, 256 - len(still))
            waiting = still + [f"s{left - n}" for n in range(fresh)]
            left -= fresh


def test_among_many_answers_a_row_is_blamed_soon_and_among_few_later():
    for answers, expected in ((1000, 4), (10, 7), (1, 14)):
        outage = Outage(300.0, 0.0)
        times = 1
        while not outage.blames("poison", LMTimeoutError("late", model="m"), 3):
            times += 1
            for _ in range(answers):
                outage.answered(["m"], 1.0)
        assert times == expected


def test_a_row_that_came_through_starts_anew():
    outage = Outage(300.0, 0.0)
    for _ in range(3):
        assert not outage.blames("r", DOWN, 3)
        for _ in range(100):
            outage.answered(["m"], 1.0)
    outage.ended("r")
    assert outage.lost("r") == 0
    assert not outage.blames("r", DOWN, 3)
    assert outage.lost("r") == 1


def test_each_model_has_its_own_silence():
    outage = Outage(10.0, 0.0)
    outage.started(0.0)
    outage.answered(["up"], 1.0)
    outage.answered(["down"], 1.0)
    outage.answered(["up"], 12.0)
    assert outage.spent(LMServerError("x", model="down"), 12.0)
    assert not outage.spent(LMServerError("x", model="up"), 12.0)
    # One that has never answered is measured by whatever has.
    assert not outage.spent(LMServerError("x", model="unheard"), 12.0)
    assert not outage.spent(LMServerError("x"), 12.0)


def failed(outage, row, times):
    """The row failed so often, and the model was heard by nobody."""
    for _ in range(times):
        assert not outage.blames(row, DOWN, 3)


class TestAskingSomethingElse:
    def test_only_after_silence_and_for_a_row_that_failed_twice(self):
        outage = Outage(300.0, 0.0)
        outage.started(0.0)
        outage.answered(["m"], 1.0)
        failed(outage, "r", 1)
        assert not outage.wants_probe("r", 50.0)
        failed(outage, "r", 1)
        assert not outage.wants_probe("r", 10.0)
        assert not outage.wants_probe("other", 50.0)
        assert outage.wants_probe("r", 50.0)

    def test_one_at_a_time(self):
        outage = Outage(300.0, 0.0)
        failed(outage, "r", 2)
        failed(outage, "s", 2)
        assert outage.wants_probe("r", 50.0)
        assert not outage.wants_probe("s", 50.0)
        outage.probed()
        assert outage.wants_probe("s", 50.0)

    def test_a_row_that_fails_while_the_question_is_answered_is_blamed_though_it_is_alone(self):
        outage = Outage(300.0, 0.0)
        outage.started(0.0)
        now, times = 0.0, 0
        while True:
            now, times = now + 12.0, times + 1
            if outage.wants_probe("r", now):
                outage.probed()
                outage.answered(["m"], now)
            assert not outage.spent(DOWN, now)
            if outage.blames("r", DOWN, 3):
                break
        assert times == 15

    def test_in_an_outage_nobody_is_blamed_and_it_is_spent(self):
        outage = Outage(300.0, 0.0)
        outage.started(0.0)
        for second in range(0, 300, 10):
            if outage.wants_probe("r", float(second)):
                outage.probed()
            assert not outage.blames("r", DOWN, 3)
        assert outage.spent(DOWN, 301.0)
