"""Which parts are started again, and when no more: decisions under a clock of our own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.supervisor import STRATEGIES, Intensity, Restart, RestartsExceeded, Supervisor

PARTS = ("a", "b", "c", "d")
MANY = Intensity(10**6, 1.0)


@given(st.sampled_from(STRATEGIES), st.sampled_from(PARTS), st.floats(0, 1e9))
def test_parts_are_the_ones_of_the_strategy_in_their_order(strategy, part, now):
    found = Supervisor(PARTS, strategy, MANY).failed(part, "x", now=now).parts
    assert found == tuple(sorted(found))
    index = PARTS.index(part)
    expected = {"one_for_one": (part,), "rest_for_one": PARTS[index:], "one_for_all": PARTS}
    assert found == expected[strategy]


@given(
    st.integers(0, 6),
    st.floats(0.1, 100, allow_nan=False),
    st.lists(st.floats(0, 50, allow_nan=False), max_size=60),
)
def test_no_window_ever_sees_more_restarts_than_are_allowed(restarts, seconds, pauses):
    supervisor = Supervisor(PARTS, "one_for_one", Intensity(restarts, seconds))
    now, done = 0.0, []
    for pause in pauses:
        now += pause
        within = [when for when in done if when > now - seconds]
        if len(within) >= restarts:
            with pytest.raises(RestartsExceeded, match=f"started again {restarts} times"):
                supervisor.failed("a", "x", now=now)
        else:
            supervisor.failed("a", "x", now=now)
            done.append(now)


def test_the_first_restart_is_at_once_and_the_next_ones_wait_ever_longer():
    supervisor = Supervisor(PARTS, "one_for_one", Intensity(100, 100.0))
    delays = [supervisor.failed("a", "x", now=float(n)).delay for n in range(9)]
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_after_a_quiet_time_it_is_as_if_nothing_had_been():
    supervisor = Supervisor(PARTS, "rest_for_one", Intensity(1, 5.0))
    assert supervisor.failed("c", "x", now=0.0) == Restart(("c", "d"), 0.0)
    assert supervisor.failed("c", "x", now=5.0) == Restart(("c", "d"), 0.0)


def test_the_error_says_what_to_do_and_stops_the_flow():
    with pytest.raises(RestartsExceeded, match=r"b failed \(gone\).*mend the cause") as caught:
        Supervisor(PARTS, "one_for_one", Intensity(0, 5.0)).failed("b", "gone", now=0.0)
    assert (caught.value.scope, caught.value.exit_code) == ("flow", 69)


@pytest.mark.parametrize(
    "values", [(-1, 1.0), (1, 0.0), (3, float("nan")), (1.5, 1.0), ("3", 1.0), (3, "5"), (True, 1.0)]
)
def test_an_impossible_intensity_is_refused(values):
    with pytest.raises(ConfigurationError):
        Intensity(*values)
