"""What each part made of its rows."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dspy_stream as ds
from dspy_stream.modules.part import Apply
from dspy_stream.stream.meter import Meter
from dspy_stream.stream.sinks import MemorySink
from tests.modules.process.programs import Says


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_quantile_is_that_of_the_times_to_a_seventh(times, share):
    meter = Meter()
    for seconds in times:
        meter.took(seconds)
    wanted = sorted(times)[math.ceil(share * len(times) - 1e-9) - 1]
    assert meter.quantile(share) == pytest.approx(wanted, rel=1 / 7, abs=2e-6)


def test_nothing_has_no_quantile():
    assert Meter().quantile(0.5) is None


def test_times_without_end_have_a_bucket():
    meter = Meter()
    meter.took(1e12)
    assert meter.quantile(0.5) > 1e5


def shaky(n):
    if n % 4 == 1:
        raise ValueError(n)
    return {"m": n}


def last(n):
    return {"i": 1 / (n - 4)}


def report_of(*parts):
    stream = ds.Stream.from_iterable([{"n": n} for n in range(8)])
    for part, options in parts:
        stream = stream.through(part, **options)
    return (
        stream.limit_failures(consecutive=None, ratio=None)
        .write(MemorySink(), dead_letters=MemorySink())
        .run(state=None, quiet=True)
    )


def counts(part):
    return part.rows_in, part.rows_out, part.dead_letters, part.skipped, part.defaulted, part.fallbacks


def test_each_part_counts_what_became_of_its_rows():
    shaken = Apply(shaky)
    report = report_of(
        (shaken, {"retries": 2}),
        (Apply(lambda n: {"k": 1 / (n - 2)}), {"on_error": "skip", "capacity": 1}),
        (Apply(lambda n: {"j": 1 / (n - 3)}), {"on_error": "default", "defaults": {"j": 0}}),
        (ds.Program(i=Apply(last).using(fallback=lambda n: {"i": 0})), {}),
    )
    first, second, third, fourth = report.parts
    assert counts(first) == (8, 6, 2, 0, 0, 0)
    assert first.retries == 4
    assert counts(second) == (6, 5, 0, 1, 0, 0)
    assert (second.most_in_flight, second.capacity) == (1, 1)
    assert counts(third) == (5, 5, 0, 0, 1, 0)
    assert counts(fourth) == (5, 5, 0, 0, 0, 1)
    assert [part["step"] for part in report.to_json()["parts"]] == [part.step for part in report.parts]
    assert all(0 <= part.p50 <= part.p95 for part in report.parts)


def test_worker_processes_that_ended_count_for_their_part(monkeypatch, tmp_path):
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    report = report_of(
        (Apply(lambda n: {"do": "first" if n == 3 else ""}), {}),
        (Says(), {"isolation": "process", "workers": 1}),
    )
    assert [part.worker_deaths for part in report.parts] == [0, 1] == [0, report.worker_deaths]


class Shaky(ds.Module):
    """A program with a part in it that has a choice of its own."""

    def __init__(self, **options):
        self.inner = ds.Program(first=lambda n: {"k": n}, second=Apply(shaky).using(**options))

    def steps(self, inputs):
        return self.inner.steps(inputs)


def defaulting():
    return Shaky(on_error="default", defaults={"m": -1})


def stopping():
    return Shaky(on_error="stop")


WHOLE = [{}, {"isolation": "thread"}, {"isolation": "process", "workers": 1}]


@pytest.mark.parametrize("options", WHOLE, ids=["inline", "thread", "process"])
class TestPartsOfAStepThatRunsWhole:
    def test_rows_with_defaults_of_a_part_count(self, options, caplog):
        if "workers" in options:
            options = {**options, "factory": defaulting}
        report = report_of((defaulting(), {**options, "split": False}))
        (part,) = report.parts
        assert (report.defaulted, part.defaulted, part.rows_out) == (2, 2, 8)
        assert "failed and goes on with default outputs: ValueError: " in caplog.text

    def test_one_that_stops_the_flow_does(self, options):
        if "workers" in options:
            options = {**options, "factory": stopping}
        with pytest.raises(ValueError, match=r"^[15]$"):
            report_of((stopping(), {**options, "split": False}))


class Breaks(ds.Module):
    """Holds something that breaks once."""

    failures = (ConnectionError,)
    broken = 0

    def open(self):
        pass

    def close(self):
        pass

    def forward(self, n):
        if n == 3 and not self.broken:
            self.broken = 1
            raise ConnectionError
        return ds.Prediction(m=n)


class Inside(ds.Module):
    """Has what breaks in it."""

    def __init__(self):
        self.breaks = Breaks()

    def forward(self, n):
        return self.breaks(n=n)


@pytest.mark.parametrize("isolation", ["inline", "thread"])
@pytest.mark.parametrize("make", [Inside, lambda: ds.Program(a=Breaks())])
def test_restarts_of_what_runs_within_a_step_count_for_the_step(make, isolation):
    report = report_of((Apply(shaky), {"retries": 2}), (make(), {"isolation": isolation, "split": False}))
    assert ([part.restarts for part in report.parts], report.restarts) == ([0, 1], 1)


def test_restarts_count_for_the_part_that_failed():
    report = report_of((Breaks(), {}), (Apply(shaky), {}))
    assert [part.restarts for part in report.parts] == [1, 0]
