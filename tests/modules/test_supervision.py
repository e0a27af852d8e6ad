"""Parts that hold resources: opened, started again and closed, called and in flows, inline and in threads."""

import asyncio
import logging
import threading

import pytest

import dspy_stream as ds
from dspy_stream import events
from dspy_stream.clock import FakeClock
from dspy_stream.errors import ConfigurationError
from dspy_stream.modules import hosts
from dspy_stream.modules.opening import OpenTimeout
from dspy_stream.modules.part import Apply
from dspy_stream.modules.supervision import Group, Tree
from dspy_stream.modules.supervisor import Intensity, RestartsExceeded
from dspy_stream.stream.sinks import MemorySink

LOG: list[str] = []


@pytest.fixture(autouse=True)
def log():
    LOG.clear()
    return LOG


class Gone(Exception):
    """The connection is gone."""


class Holds(ds.Module):
    """Holds something that breaks when it is told to."""

    failures = (Gone,)

    def __init__(self, name, reads="n", breaks=()):
        self.name = name
        self.reads = reads
        self.breaks = set(breaks)
        self.refusals = 0
        self.resource = None

    def open(self):
        LOG.append(f"open {self.name}")
        if self.refusals:
            self.refusals -= 1
            raise ConnectionRefusedError("not yet")
        self.resource = object()

    def close(self):
        LOG.append(f"close {self.name}")
        self.resource = None

    def forward(self, n):
        assert self.resource is not None, "it runs while it holds nothing"
        if n in self.breaks:
            self.breaks.discard(n)
            raise Gone(f"at {n}")
        return ds.Prediction(**{self.name: n})


class Waits(Holds):
    """Its rows are in flight when something breaks."""

    def open(self):
        super().open()
        self.started = asyncio.Event()

    async def aforward(self, n):
        held = self.resource
        assert held is not None
        await asyncio.sleep(0.01)
        assert self.resource is held, "it was taken away under a row"
        return ds.Prediction(**{self.name: n})


def refuses(n):
    raise ValueError(f"not {n}")


def three(strategy, **options):
    return ds.Program(
        strategy=strategy,
        intensity=Intensity(20, 60.0),
        a=Holds("a").using(**options),
        b=Holds("b", breaks={3}).using(**options),
        c=Holds("c").using(**options),
    )


ROWS = [{"n": n} for n in range(8)]
WHOLE = [{"n": n, "a": n, "b": n, "c": n} for n in range(8)]
AGAIN = {
    "one_for_one": ["close b", "open b"],
    "rest_for_one": ["close b", "open b"],  # nothing has opened c yet, in a call
    "one_for_all": ["close b", "close a", "open a", "open b"],
}


def run(stream, **options):
    rows, letters = MemorySink(), MemorySink()
    report = stream.write(rows, dead_letters=letters).run(state=None, quiet=True, **options)
    assert report.rows_in == report.rows_out + report.dead_letters + report.dropped
    return sorted((dict(row.fields) for row in rows.rows), key=lambda row: row["n"]), letters.rows, report


class TestCalled:
    @pytest.mark.parametrize("strategy", AGAIN)
    def test_the_strategy_says_what_is_started_again_and_in_which_order(self, strategy):
        made = three(strategy)
        assert made(n=3).toDict() == {"a": 3, "b": 3, "c": 3}
        opened = ["open a", "open b"]
        assert [*opened, *AGAIN[strategy], "open c"] == LOG

    def test_later_parts_are_started_again_with_an_earlier_one(self):
        made = three("rest_for_one")
        made(n=0)
        LOG.clear()
        made(n=3)
        assert LOG == ["close c", "close b", "open b", "open c"]

    def test_a_fallback_is_opened_for_its_first_row_and_started_again(self):
        made = ds.Program(a=Apply(refuses).using(fallback=Holds("a", breaks={2})))
        assert LOG == []
        assert [made(n=n).a for n in (1, 2, 3)] == [1, 2, 3]
        assert LOG == ["open a", "close a", "open a"]

    def test_a_part_is_no_intensity(self):
        with pytest.raises(ConfigurationError, match="name a part otherwise"):
            ds.Program(intensity=Holds("a"))

    def test_it_stays_open_from_call_to_call(self):
        made = three("one_for_one")
        for n in range(3):
            made(n=n)
        assert LOG == ["open a", "open b", "open c"]

    def test_an_opening_that_fails_is_tried_again(self):
        part = Holds("a")
        part.refusals = 2
        assert ds.Program(a=part)(n=1).a == 1
        assert LOG == ["open a"] * 3

    def test_a_part_that_cannot_be_kept_up_is_given_up(self):
        part = Holds("a")
        part.refusals = 99
        made = ds.Program(a=part, intensity=Intensity(2, 60.0))
        for _ in range(2):
            with pytest.raises(RestartsExceeded, match=r"a failed \(ConnectionRefusedError: not yet\)"):
                made(n=1)
        assert LOG == ["open a"] * 3

    def test_a_part_that_was_given_up_is_tried_again_after_the_window(self, monkeypatch):
        clock, part = FakeClock(), Holds("a")
        monkeypatch.setattr(hosts, "_process", [])
        monkeypatch.setattr(hosts, "SystemClock", lambda: clock)
        part.refusals = 2
        made = ds.Program(a=part, intensity=Intensity(1, 5.0))
        with pytest.raises(RestartsExceeded):
            made(n=1)
        clock.advance(4.9)
        with pytest.raises(RestartsExceeded):
            made(n=1)
        clock.advance(0.2)
        assert made(n=1).a == 1
        assert LOG == ["open a"] * 3

    def test_a_row_that_brings_the_part_down_again_is_at_fault_itself(self):
        class Poison(Holds):
            def forward(self, n):
                if n == 1:
                    raise Gone("always")
                return ds.Prediction(a=n)

        made = ds.Program(a=Poison("a"), intensity=Intensity(10, 60.0))
        with pytest.raises(Gone):
            made(n=1)
        assert made(n=2).a == 2
        assert LOG == ["open a", "close a", "open a", "close a", "open a"]

    def test_other_failures_are_the_row_s_own(self):
        class Fails(Holds):
            def forward(self, n):
                raise ValueError("bad row")

        with pytest.raises(ValueError, match="bad row"):
            ds.Program(a=Fails("a"))(n=1)
        assert LOG == ["open a"]

    def test_after_a_failure_the_part_is_asked_how_it_is(self):
        class Asked(Holds):
            failures = ()

            def healthy(self):
                return self.resource != "broken"

            def forward(self, n):
                if n == 7 and self.resource != "broken" and LOG == ["open a"]:
                    self.resource = "broken"
                if self.resource == "broken":
                    raise OSError("read failed")
                return ds.Prediction(a=n)

        assert ds.Program(a=Asked("a"))(n=7).a == 7
        assert LOG == ["open a", "close a", "open a"]

    @pytest.mark.parametrize("options", [{}, {"isolation": "thread"}], ids=["inline", "thread"])
    def test_it_is_asked_where_its_code_runs_and_one_that_cannot_say_is_not_well(self, options):
        threads = []

        class Dead(Holds):
            failures = ()

            def healthy(self):
                threads.append(threading.current_thread().name)
                raise ConnectionResetError("gone")

            def forward(self, n):
                if LOG == ["open a"]:
                    raise OSError("read failed")
                threads.append(threading.current_thread().name)
                return ds.Prediction(a=n)

        assert ds.Program(a=Dead("a").using(workers=1, **options) if options else Dead("a"))(n=7).a == 7
        assert LOG == ["open a", "close a", "open a"]
        asked, ran = threads
        assert asked == ran

    def test_coroutine_functions_open_and_close(self):
        class Later(Holds):
            async def open(self):
                await asyncio.sleep(0)
                super().open()

            async def close(self):
                await asyncio.sleep(0)
                super().close()

        assert ds.Program(a=Later("a", breaks={1}))(n=1).a == 1
        assert LOG == ["open a", "close a", "open a"]


class TestFlow:
    @pytest.mark.parametrize("split", [None, False])
    @pytest.mark.parametrize("options", [{}, {"isolation": "thread"}], ids=["inline", "thread"])
    @pytest.mark.parametrize("strategy", AGAIN)
    def test_no_row_is_lost_and_everything_is_closed_at_the_end(self, strategy, options, split):
        stream = ds.Stream.from_iterable(ROWS).through(three(strategy, **options), split=split)
        rows, letters, report = run(stream)
        assert rows == WHOLE
        assert letters == []
        assert report.to_json()["restarts"] == 1
        for name in "abc":
            assert LOG.count(f"open {name}") == LOG.count(f"close {name}") >= 1
        assert LOG.count("open b") == 2
        assert [line for line in LOG if line.startswith("close")][-3:] == ["close c", "close b", "close a"]

    def test_rows_in_flight_are_interrupted_and_begin_anew(self):
        made = ds.Program(
            strategy="one_for_all",
            intensity=Intensity(50, 60.0),
            a=Waits("a"),
            b=Holds("b", breaks={5, 50, 95}),
        )
        rows, letters, report = run(ds.Stream.from_iterable([{"n": n} for n in range(100)]).through(made))
        assert [row["n"] for row in rows] == list(range(100))
        assert letters == []
        assert 1 <= report.restarts <= 3  # rows that find out together are one failure

    def test_a_row_that_waits_for_what_is_broken_begins_anew(self):
        class Hangs(Holds):
            async def aforward(self, n):
                if n == 1 and LOG.count("open a") == 1:
                    await asyncio.Event().wait()
                return ds.Prediction(a=n)

        made = ds.Program(strategy="one_for_all", a=Hangs("a"), b=Holds("b", breaks={5}))
        rows, letters, report = run(ds.Stream.from_iterable(ROWS).through(made))
        assert ([row["n"] for row in rows], letters, report.restarts) == (list(range(8)), [], 1)

    def test_a_part_that_cannot_be_kept_up_stops_the_flow(self):
        part = Holds("a")
        part.refusals = 99
        stream = ds.Stream.from_iterable(ROWS).through(ds.Program(a=part, intensity=Intensity(1, 60.0)))
        with pytest.raises(RestartsExceeded, match="mend the cause and run again"):
            run(stream)

    @pytest.mark.parametrize("split", [None, False])
    def test_a_fallback_is_supervised_and_closed_as_well(self, split):
        made = ds.Program(a=Apply(refuses).using(fallback=Holds("a", breaks={3})), b=Holds("b"))
        rows, letters, report = run(ds.Stream.from_iterable(ROWS).through(made, split=split))
        assert rows == [{"n": n, "a": n, "b": n} for n in range(8)]
        assert (letters, report.restarts) == ([], 1)
        assert LOG.count("open a") == LOG.count("close a") == 2

    def test_a_single_module_is_supervised_as_well(self):
        rows, _, report = run(ds.Stream.from_iterable(ROWS).through(Holds("a", breaks={2})))
        assert [row["a"] for row in rows] == list(range(8))
        assert report.restarts == 1
        assert LOG == ["open a", "close a", "open a", "close a"]

    def test_waiting_for_a_part_is_not_the_row_s_time(self):
        part = Holds("a", breaks={0})
        part_opens = part.open

        def slow():
            LOG.append("slow")
            return part_opens()

        async def open_():
            if "open a" in LOG:
                await asyncio.sleep(0.5)
            slow()

        part.open = open_
        stream = ds.Stream.from_iterable(ROWS).through(part, timeout=0.1)
        rows, letters, _ = run(stream)
        assert (len(rows), letters) == (8, [])

    @pytest.mark.parametrize("split", [None, False])
    def test_a_row_s_time_is_bounded_all_the_same(self, split):
        class Hangs(Holds):
            async def aforward(self, n):
                if n == 1:
                    await asyncio.Event().wait()
                return ds.Prediction(a=n)

        made = ds.Program(a=Hangs("a").using(timeout=0.2))
        rows, (letter,), _ = run(ds.Stream.from_iterable(ROWS).through(made, split=split))
        assert (len(rows), letter.error["code"]) == (7, "timeout")

    def test_parts_of_parts_are_supervised_by_themselves(self):
        made = ds.Program(
            strategy="one_for_all",
            a=Holds("a"),
            both=ds.Fork(b=Holds("b", breaks={3}), c=Holds("c")),
            last=Holds("d") | Holds("e"),
        )
        rows, letters, report = run(ds.Stream.from_iterable(ROWS).through(made))
        assert [row["b"] for row in rows] == list(range(8))
        assert (letters, report.restarts) == ([], 1)
        assert sorted(line for line in LOG if line.startswith("open")) == [
            *("open a", "open b", "open b", "open c", "open d", "open e")
        ]
        LOG.clear()
        assert made(n=1).toDict() == dict.fromkeys("abcde", 1)

    def test_a_dry_run_opens_and_closes_as_well(self):
        estimate = ds.Stream.from_iterable(ROWS).through(three("one_for_one")).compile().dry_run(state=None)
        assert estimate.notes == ()
        assert sorted(set(LOG)) == ["close a", "close b", "close c", "open a", "open b", "open c"]

    def test_the_table_of_steps_says_so(self):
        stream = ds.Stream.from_iterable(ROWS).through(three("rest_for_one", isolation="thread", workers=3))
        said = stream.compile().explain()
        assert said.count("3         unordered  in threads, rest_for_one, dead_letter") == 3


def test_restarts_are_events():
    heard = []
    stop = events.subscribe(heard.append, kinds=["part"])
    try:
        three("one_for_all")(n=3)
    finally:
        stop()
    (event,) = heard
    assert (event.part, event.reason, event.parts, event.delay) == ("b", "Gone: at 3", ("a", "b"), 0.0)


def test_a_failure_while_a_part_is_being_opened_opens_it_once_more():
    """The group itself, on a loop of the test's: a peer fails while the part is half open."""

    class Slow:
        def __init__(self):
            self.calls = []
            self.gate = asyncio.Event()

        async def open(self):
            self.calls.append("open")
            await self.gate.wait()

        async def close(self):
            self.calls.append("close")

    async def main():
        group = Group(Tree(("a", "b"), "one_for_all", Intensity(9, 9.0)), ds_clock())
        slow, other = Slow(), Slow()
        other.gate.set()
        a, b = group.member("a", slow, None), group.member("b", other, None)
        group.need(b)
        while not b.up:
            await asyncio.sleep(0)
        group.need(a)
        while not slow.calls:
            await asyncio.sleep(0)
        group.failed(b, OSError("gone"))
        group.failed(a, OSError("as well"))
        slow.gate.set()
        while not (a.up and b.up):
            await asyncio.sleep(0)
        await group.aclose()
        return slow.calls, other.calls

    def ds_clock():
        from dspy_stream.clock import FakeClock

        return FakeClock()

    slow, other = asyncio.run(main())
    assert slow == ["open", "close", "open", "close"]
    assert other == ["open", "close", "open", "close"]


class Late(Holds):
    """Blocks in its open until it is let go."""

    open_timeout = 0.2

    def __init__(self, gate):
        super().__init__("late")
        self.gate = gate

    def open(self):
        LOG.append("open")
        self.gate.wait(60)
        super().open()


class LateAsync(Holds):
    """Waits in its open, which does not block."""

    open_timeout = 0.2

    async def open(self):
        await asyncio.sleep(600)


class TestLate:
    def test_an_open_in_a_thread_that_never_returns_stops_the_flow_and_says_where_it_is(self):
        gate = threading.Event()
        stream = ds.Stream.from_iterable(ROWS).through(Late(gate), isolation="thread", name="search")
        with pytest.raises(OpenTimeout, match=r"search\.open.* 0\.2 s; it is at test_superv.* in open >"):
            run(stream)
        gate.set()
        assert LOG.count("open") == 1

    def test_so_does_one_that_only_waits(self):
        with pytest.raises(OpenTimeout, match=r"open\(\) did not come to an end within 0\.2 s\. Give"):
            run(ds.Stream.from_iterable(ROWS).through(LateAsync("a")))

    def test_of_one_that_blocks_everything_the_log_says_where_it_is(self, caplog):
        """It cannot be interrupted; it is let go as soon as it was told of."""
        gate = threading.Event()

        class Heard(logging.Handler):
            def emit(self, record):
                gate.set()

        heard = Heard()
        logging.getLogger("dspy_stream").addHandler(heard)
        try:
            rows, _, _ = run(ds.Stream.from_iterable(ROWS).through(Late(gate)))
        finally:
            logging.getLogger("dspy_stream").removeHandler(heard)
        (said,) = [record.getMessage() for record in caplog.records]
        assert "Late.open() has not come to an end for 0.2 s" in said
        assert "test_supervision.py, line" in said
        assert "in open >" in said
        assert len(rows) == 8

    def test_calls_outside_flows_are_told_at_once_until_it_is_tried_again(self):
        program = ds.Program(a=LateAsync("a"))
        for _ in range(2):
            with pytest.raises(OpenTimeout):
                program(n=1)

    @pytest.mark.parametrize("name", ["open_timeout", "close_timeout"])
    @pytest.mark.parametrize("given", [0, -1.0, "10", None, float("nan")])
    def test_the_time_is_a_number_of_seconds(self, name, given):
        made = Holds("a")
        setattr(made, name, given)
        with pytest.raises(ConfigurationError, match=rf"{name}=.* of Holds: must be more than 0 seconds"):
            ds.Stream.from_iterable(ROWS).through(made)

    def test_a_close_in_a_thread_that_never_returns_holds_up_no_end(self, caplog):
        gate = threading.Event()

        class NeverClosed(Holds):
            close_timeout = 0.2

            def close(self):
                gate.wait(60)

        rows, _, _ = run(
            ds.Stream.from_iterable(ROWS).through(NeverClosed("a"), isolation="thread", name="search")
        )
        gate.set()
        assert len(rows) == 8
        (said,) = [record.getMessage() for record in caplog.records]
        assert (
            "search.close() did not come to an end within 0.2 s, and is no longer waited for; it is at"
            in said
        )
        assert "in close >" in said

    def test_nor_does_one_that_only_waits(self, caplog):
        class NeverClosed(Holds):
            close_timeout = 0.2

            async def close(self):
                await asyncio.sleep(600)

        rows, _, _ = run(ds.Stream.from_iterable(ROWS).through(NeverClosed("a")))
        assert len(rows) == 8
        assert "is no longer waited for" in caplog.text

    @pytest.mark.parametrize("isolation", ["inline", "thread"])
    def test_a_part_that_does_not_say_how_it_is_is_not_well(self, isolation, caplog):
        gate = threading.Event()

        class Mute(Holds):
            close_timeout = 0.2
            failures = ()

            async def healthy(self):
                await asyncio.sleep(600)

            def forward(self, n):
                if LOG.count("open a") == 1:
                    raise OSError("read failed")
                return ds.Prediction(a=n)

        class MuteThread(Mute):
            def healthy(self):
                gate.wait(60)

        made = Mute("a") if isolation == "inline" else MuteThread("a")
        assert ds.Program(a=made.using(isolation=isolation))(n=7).a == 7
        gate.set()
        assert LOG[:3] == ["open a", "close a", "open a"]
        assert "a does not say within 0.2 s how it is" in caplog.text

    def test_the_wait_for_a_thread_is_not_that_of_the_question(self):
        """Another row has the only thread for longer than the part may take to say how it is."""
        gate, asked = threading.Event(), threading.Event()

        class Well(Holds):
            close_timeout = 0.3
            failures = ()

            def healthy(self):
                return True

            def forward(self, n):
                if n == 0:
                    raise OSError("read failed")
                asked.set()
                gate.wait(60)
                return ds.Prediction(a=n)

        def let_go():
            asked.wait(60)
            gate.wait(1.0)  # longer than the part may take
            gate.set()

        thread = threading.Thread(target=let_go)
        thread.start()
        stream = ds.Stream.from_iterable([{"n": 0}, {"n": 1}])
        rows, letters, _ = run(stream.through(Well("a"), isolation="thread", workers=1, capacity=2))
        thread.join()
        assert (len(rows), len(letters), LOG) == (1, 1, ["open a", "close a"])


class TestNothingIsDone:
    """Restarts between which no row comes to its end: the shortest window forgets none of them."""

    NEVER = Intensity(restarts=2, seconds=1e-9)

    def test_an_open_that_always_fails_is_given_up_however_long_it_takes(self):
        class Refused(Holds):
            def open(self):
                LOG.append("open")
                raise ConnectionRefusedError("no")

        program = ds.Program(a=Refused("a"), intensity=self.NEVER)
        with pytest.raises(RestartsExceeded, match="2 times and no row came to its end meanwhile"):
            run(ds.Stream.from_iterable(ROWS).through(program))
        assert LOG == ["open"] * 3

    def test_what_fails_again_and_again_while_rows_pass_goes_on(self):
        """Each failure costs its row one more attempt, and the time between forgets the one before."""
        program = ds.Program(a=Holds("a", breaks=range(8)), intensity=self.NEVER)
        rows, _, report = run(ds.Stream.from_iterable(ROWS).through(program, capacity=1, order="ordered"))
        assert (len(rows), report.restarts) == (8, 8)

    def test_an_error_that_concerns_the_flow_is_not_tried_again(self):
        class Keyless(Holds):
            def open(self):
                LOG.append("open")
                raise ConfigurationError("no key")

        with pytest.raises(ConfigurationError, match="no key"):
            run(ds.Stream.from_iterable(ROWS).through(Keyless("a")))
        assert LOG == ["open"]


def test_a_part_that_goes_down_before_its_row_has_begun_is_waited_for_again(monkeypatch):
    """As when a row in a thread hears of it late; its code is not run while nothing is open."""
    monkeypatch.setattr("dspy_stream.modules.member.hop", lambda work: work.close() or "waits")
    group = Group(Tree(("a",)), FakeClock())
    member = group.member("a", None, None)
    steps = member.steps(lambda: pytest.fail("it was begun"))
    assert next(steps) == "waits"
    member.up = True
    member.down()
    assert steps.send(None) == "waits"


def test_threads_are_not_the_loop_s_and_few(tmp_path):
    seen = set()

    class Blocks(ds.Module):
        def forward(self, n):
            seen.add(threading.current_thread().name)
            return ds.Prediction(m=n)

    rows, _, _ = run(ds.Stream.from_iterable(ROWS * 20).through(Blocks(), isolation="thread", workers=4))
    assert len(rows) == 160
    assert len(seen) <= 4
    assert not seen & {"dspy_stream", "MainThread"}
