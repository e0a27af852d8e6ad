"""A clock that is set back: the flow ends, and goes on from its last commit; without state it says so."""

import logging
import threading

import orjson
import pytest

from dspy_stream.clock import FakeClock, SystemClock
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Predict
from dspy_stream.stream import Stream, job, wall
from dspy_stream.stream.job import Job
from dspy_stream.stream.sinks.file import FilePartition
from dspy_stream.stream.wall import LEAST, ClockSetBack, WallClock

HOUR = 3600.0


class SetClock(SystemClock):
    """The machine's clock, which somebody sets; ``looks`` counts how often it was read."""

    ahead = 0.0
    looks = 0

    def time(self):
        type(self).looks += 1
        return super().time() + type(self).ahead


@pytest.fixture
def clock(monkeypatch):
    made = type("Clock", (SetClock,), {})
    monkeypatch.setattr(job, "SystemClock", made)
    monkeypatch.setattr(wall, "_LOOK", 0.01)
    monkeypatch.setattr(wall, "_PATIENCE", 0.05)
    return made


class TestTheWallClock:
    def test_a_step_back_is_seen_once_and_a_step_forward_is_none(self):
        clock = WallClock(time=100.0, monotonic=0.0)
        assert clock.back(time=7300.0, monotonic=1.0) == 0.0
        assert clock.back(time=101.0, monotonic=2.0) == pytest.approx(7200.0)
        assert clock.back(time=102.0, monotonic=3.0) == 0.0

    def test_a_long_wait_is_no_step(self):
        clock = WallClock(time=100.0, monotonic=0.0)
        assert clock.back(time=100.0 + 5 * HOUR, monotonic=5 * HOUR) == 0.0


class TestBothClocks:
    def test_a_process_that_is_held_up_between_them_sees_no_step(self):
        class HeldUp(FakeClock):
            looks = 0

            def time(self):
                self.looks += 1
                if self.looks == 1:
                    self.advance(60.0)  # before the look at it, in the first turn, and after it
                found = super().time()
                if self.looks == 2:
                    self.advance(60.0)
                return found

        clock = HeldUp(1000.0)
        ahead = FakeClock.time(clock) - clock.monotonic()
        time, monotonic = wall._both(clock)
        assert time - monotonic == ahead
        assert clock.looks == 3


class TestWatching:
    def test_a_large_step_closes_the_gate_and_ends_the_engine(self, clock):
        run = Job("test", "digest")
        with wall.wall_watched(run, grace=0.0):
            clock.ahead = -HOUR
            for _ in range(3000):
                threading.Event().wait(0.01)
            pytest.fail("the engine was not interrupted")
        assert run.gate.set_back == pytest.approx(HOUR, abs=1.0)
        assert run.gate.closing
        assert run.gate.abort

    def test_an_interrupt_that_comes_when_the_engine_has_ended_is_dropped(self, clock, monkeypatch):
        run = Job("test", "digest")
        real = threading.Thread.join
        joins = []

        def late(thread, timeout=None):
            if thread.name == "wall clock" and not joins:
                joins.append(thread)
                raise KeyboardInterrupt  # it was on its way
            return real(thread, timeout)

        monkeypatch.setattr(threading.Thread, "join", late)
        with wall.wall_watched(run, grace=0.0):
            clock.ahead = -HOUR
            while not run.gate.abort:
                threading.Event().wait(0.01)
        assert joins
        assert not joins[0].is_alive()

    def test_a_small_step_and_one_forward_are_waited_for(self, clock):
        run = Job("test", "digest")
        with wall.wall_watched(run, grace=0.0):
            for ahead in (HOUR, HOUR - LEAST / 2):
                clock.ahead, clock.looks = ahead, 0
                while clock.looks < 3:
                    threading.Event().wait(0.01)
        assert run.gate.set_back == 0.0
        assert not run.gate.closing

    def test_another_interrupt_is_not_taken_for_ours(self, clock):
        with pytest.raises(KeyboardInterrupt), wall.wall_watched(Job("test", "digest"), grace=0.0):
            raise KeyboardInterrupt

    def test_beside_the_main_thread_it_can_only_say_so(self, clock, caplog):
        run = Job("test", "digest")
        caplog.set_level(logging.ERROR, "dspy_stream")

        def engine():
            with wall.wall_watched(run, grace=0.0):
                clock.ahead, clock.looks = -HOUR, 0
                while clock.looks < 3:
                    threading.Event().wait(0.01)

        thread = threading.Thread(target=engine)
        thread.start()
        thread.join()
        assert "set back by 3600 s" in caplog.text
        assert not run.gate.closing


def flow_over(path, clock, count=400):
    """A flow during whose 200th row the clock is set back, once; and the calls it makes."""
    asked = []
    source = path / "in.jsonl"
    source.write_bytes(b"".join(b'{"question":"q%d"}\n' % number for number in range(count)))

    def answer(request):
        asked.append(request.tail[0].content)
        return {"answer": "yes"}

    def stepped(row):
        if row.question == "q200" and clock.ahead == 0.0:
            clock.ahead, clock.looks = -24 * HOUR, 0
            while clock.looks < 1:
                threading.Event().wait(0.01)
        return dict(row)

    stream = Stream.read(source, name="qa").through(Predict("question -> answer"), name="ask").map(stepped)
    return stream.write(path / "out.jsonl"), ScriptedLM(answer, cache=True), asked


class TestAFlow:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_goes_on_by_itself_and_pays_for_nothing_twice(self, tmp_path, clock, capfd, workers):
        flow, lm, asked = flow_over(tmp_path, clock)
        report = flow.run(lm=lm, state=tmp_path / "state", quiet=True, epoch=0.02, workers=workers)
        assert clock.ahead < 0.0
        out = [orjson.loads(line)["question"] for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
        assert sorted(out) == sorted(f"q{number}" for number in range(400))
        assert (report.status, report.rows_in, report.rows_out) == ("finished", 400, 400)
        assert len(asked) == len(set(asked)) == 400

    @pytest.mark.parametrize("where", ["flush", "close"])
    def test_goes_on_when_an_interrupt_lands_where_the_output_is_written(
        self, tmp_path, clock, capfd, monkeypatch, where
    ):
        real, held = getattr(FilePartition, where), []

        def slow(partition):
            if clock.ahead < 0.0 and not held:
                held.append(where)
                for _ in range(1000):
                    threading.Event().wait(0.01)
            return real(partition)

        monkeypatch.setattr(FilePartition, where, slow)
        flow, lm, asked = flow_over(tmp_path, clock)
        report = flow.run(lm=lm, state=tmp_path / "state", quiet=True, epoch=0.02)
        assert held
        assert (report.status, report.rows_in, report.rows_out) == ("finished", 400, 400)
        assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 400
        assert len(asked) == len(set(asked)) == 400

    def test_that_keeps_no_state_says_that_it_cannot(self, tmp_path, clock, capfd):
        flow, lm, _ = flow_over(tmp_path, clock)
        with pytest.raises(ClockSetBack, match=r"86,400 s, .*run it again"):
            flow.run(lm=lm, state=None, quiet=True)
