"""Whose fault a missing answer is: evidence, counted row by row, under a clock of our own."""

import itertools
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
    outage = Outage(10.0, 0.0, probing=False)
    outage.started(0.0)
    outage.answered(["up"], 1.0)
    outage.answered(["down"], 1.0)
    outage.answered(["up"], 12.0)
    assert outage.spent(LMServerError("x", model="down"), 12.0)
    assert not outage.spent(LMServerError("x", model="up"), 12.0)
    # One that has never answered is measured by whatever has.
    assert not outage.spent(LMServerError("x", model="unheard"), 12.0)
    assert not outage.spent(LMServerError("x"), 12.0)


def failed(outage, row, times=1):
    """The row failed so often, and the model was heard by nobody."""
    for _ in range(times):
        assert not outage.blames(row, DOWN, 3)


def asked(outage, row, now, *, answered):
    """Ask the question of our own before the row's attempt, where it is wanted."""
    wanted = outage.wants_probe(row, now)
    if wanted:
        outage.probed(answered, now)
        if answered:
            outage.answered(["m"], now)
    return wanted


class TestAskingSomethingElse:
    def test_only_after_silence_and_for_a_row_that_failed(self):
        outage = Outage(300.0, 0.0)
        outage.started(0.0)
        outage.answered(["m"], 1.0)
        failed(outage, "r")
        assert not outage.wants_probe("r", 3.0)
        assert not outage.wants_probe("other", 50.0)
        assert outage.wants_probe("r", 5.0)
        assert outage.suspects("r")

    def test_sooner_where_the_outage_budget_is_small(self):
        outage = Outage(6.0, 0.0)
        outage.started(0.0)
        failed(outage, "r")
        assert not outage.wants_probe("r", 0.5)
        assert outage.wants_probe("r", 0.7)

    def test_before_the_fifth_attempt_whoever_is_answered(self):
        outage = Outage(300.0, 0.0)
        outage.started(0.0)
        for number in range(4):
            outage.answered(["m"], float(number))
            assert not outage.wants_probe("r", float(number))
            failed(outage, "r")
        assert outage.wants_probe("r", 3.0)

    def test_one_at_a_time_and_its_answer_serves_all_that_failed_before(self):
        outage = Outage(300.0, 0.0)
        failed(outage, "r")
        failed(outage, "s")
        assert outage.wants_probe("r", 50.0)
        assert not outage.wants_probe("s", 50.0)
        outage.probed(True, 50.0)
        outage.answered(["m"], 50.0)
        assert not outage.wants_probe("s", 54.0)
        failed(outage, "s")
        assert outage.wants_probe("s", 54.0)

    def test_one_that_was_asked_in_vain_serves_nobody(self):
        outage = Outage(300.0, 0.0)
        failed(outage, "r")
        failed(outage, "s")
        assert asked(outage, "r", 50.0, answered=False)
        assert outage.wants_probe("s", 50.0)

    def test_a_row_that_fails_while_the_question_is_answered_is_blamed_though_it_is_alone(self):
        outage = Outage(12.0, 0.0)
        outage.started(0.0)
        now, times, questions = 0.0, 0, 0
        while True:
            now, times = now + 4.0, times + 1
            questions += asked(outage, "r", now, answered=True)
            assert not outage.spent(DOWN, now)
            if outage.blames("r", DOWN, 3):
                break
        assert (times, questions) == (5, 4)

    def test_many_that_always_fail_are_all_blamed(self):
        outage = Outage(6.0, 0.0)
        rows = {f"r{number}": 0 for number in range(11)}
        for _ in rows:
            outage.started(0.0)
        now, questions = 0.0, 0
        while rows:
            now += 2.0
            for row in list(rows):
                questions += asked(outage, row, now, answered=True)
                assert not outage.spent(DOWN, now)
                rows[row] += 1
                if outage.blames(row, DOWN, 3):
                    assert rows[row] <= 6
                    outage.ended(row)
                    del rows[row]
        assert questions <= 12

    def test_where_three_in_ten_always_fail_among_others_each_is_blamed(self):
        """Whoever is answered, too: their failures alone look like the model's."""
        outage = Outage(300.0, 0.0)
        times = {}
        for number in range(400):
            row = f"r{number}"
            if number % 10 < 3:
                times[row] = 0
            else:
                outage.answered(["m"], number / 10)
            for bad in list(times):
                if (number + int(bad[1:])) % 20:
                    continue
                asked(outage, bad, number / 10, answered=True)
                times[bad] += 1
                if outage.blames(bad, DOWN, 3):
                    outage.ended(bad)
                    assert times.pop(bad) <= 9
        assert all(count <= 9 for count in times.values())
        assert len(times) < 60

    def test_a_server_that_fails_nine_in_ten_fails_the_question_as_well_and_no_row_is_blamed(self):
        for seed, chance in itertools.product(range(1, 6), (0.3, 0.8, 0.9)):
            rng = random.Random(seed)
            outage = Outage(300.0, 0.0)
            waiting = [f"r{number}" for number in range(64)]
            now = 0.0
            while waiting:
                now += 2.5
                still = []
                for row in waiting:
                    asked(outage, row, now, answered=rng.random() >= chance)
                    if rng.random() < chance:
                        assert not outage.blames(row, DOWN, 3), f"{row} at {chance}"
                        still.append(row)
                    else:
                        outage.answered(["m"], now)
                        outage.ended(row)
                waiting = still

    def test_in_an_outage_nobody_is_blamed_and_it_is_spent(self):
        outage = Outage(300.0, 0.0)
        outage.started(0.0)
        for second in range(0, 301, 10):
            asked(outage, "r", float(second), answered=False)
            assert not outage.blames("r", DOWN, 3)
        assert outage.spent(DOWN, 301.0)

    def test_it_is_not_spent_before_the_question_was_asked_in_vain(self):
        outage = Outage(10.0, 0.0)
        outage.started(0.0)
        failed(outage, "r")
        assert outage.waited(DOWN, 100.0)
        assert not outage.spent(DOWN, 100.0)
        assert asked(outage, "r", 100.0, answered=False)
        assert outage.spent(DOWN, 101.0)
        outage.answered(["m"], 102.0)
        assert not outage.spent(DOWN, 113.0)  # what was in vain before an answer says nothing

    def test_nor_after_it_where_nothing_can_be_asked(self):
        outage = Outage(10.0, 0.0, probing=False)
        outage.started(0.0)
        failed(outage, "r")
        assert not outage.wants_probe("r", 100.0)
        assert outage.spent(DOWN, 100.0)


class TestCalls:
    OPEN = LMUnavailableError("x", model="m")

    def suspected(self):
        outage = Outage(12.0, 0.0)
        outage.started(0.0)
        failed(outage, "r")
        assert outage.wants_probe("r", 4.0)
        return outage

    def test_are_repeated_until_the_budget_is_used_up(self):
        outage = Outage(12.0, 0.0)
        outage.started(0.0)
        assert outage.goes_on("r", DOWN, 12.0)
        assert outage.goes_on("another", self.OPEN, 1.0)
        assert not outage.goes_on("r", DOWN, 13.0)

    def test_of_the_question_are_made_once_but_wait_for_an_open_circuit(self):
        outage = self.suspected()
        assert not outage.goes_on("r", DOWN, 5.0)
        assert outage.goes_on("r", self.OPEN, 50.0)
        assert not outage.goes_on("r", self.OPEN, 100.0)

    def test_of_a_row_that_failed_leave_the_trial_call_of_an_open_circuit_to_the_question(self):
        outage = Outage(12.0, 0.0)
        outage.started(0.0)
        assert outage.goes_on("r", self.OPEN, 0.1)
        assert not outage.suspects("r")
        assert outage.goes_on("r", DOWN, 0.2)
        assert not outage.goes_on("r", self.OPEN, 0.3)
        assert outage.suspects("r")
        assert not outage.blames("r", self.OPEN, 3)
        assert outage.wants_probe("r", 0.4)

    def test_of_other_rows_do_so_once_the_model_is_silent(self):
        outage = Outage(12.0, 0.0)
        outage.started(0.0)
        assert outage.goes_on("r", self.OPEN, 1.0)
        assert not outage.goes_on("r", self.OPEN, 1.3)
        assert not outage.blames("r", self.OPEN, 3)
        assert outage.wants_probe("r", 1.3)

    def test_that_failed_before_the_circuit_opened_count(self):
        outage = self.suspected()
        blamed = []
        for _ in range(4):
            outage.probed(True, 5.0)
            assert outage.vouched("r")
            outage.goes_on("r", DOWN, 6.0)
            blamed.append(outage.blames("r", self.OPEN, 3))
            assert outage.wants_probe("r", 6.0)
        assert blamed == [False, False, False, True]
        assert not outage.blames("r", self.OPEN, 3)  # none was made since
