"""The end of a flow: outputs, dead letters and counts go forward and back together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.errors import OutputError, RowError, TooManyFailures
from dspy_stream.rows import DeadLetter, Origin, Row
from dspy_stream.stream.job import Job
from dspy_stream.stream.limits import Limit, Streak
from dspy_stream.stream.sinks import MemorySink
from dspy_stream.stream.terminal import Counts, Terminal, TerminalSink
from dspy_stream.stream.work import Dropped


def row(number):
    return Row(f"r{number}", {"n": number}, Origin("s", "p", number))


def letter(number):
    error = {"code": "parse", "type": "E", "message": f"bad {number}"}
    return DeadLetter(f"r{number}", Origin("s", "p", number), b"{}", "parse", error)


class Box:
    def __init__(self, position):
        self.letters = [None] * position

    def append(self, letters):
        self.letters += letters

    def position(self):
        return len(self.letters)


class End:
    """One terminal, opened and opened again."""

    def __init__(self, limit=None, **measures):
        self.rows, self.letters = MemorySink(), MemorySink()
        self.terminal = Terminal("write", self.rows, self.letters, measures, limit or Limit())
        self.boxes = []

    def open(self, state=None):
        self.job = Job("test", "digest")

        def open_box(step, position):
            self.boxes.append(Box(position))
            return self.boxes[-1]

        return TerminalSink(self.terminal, self.job, open_box).build_part("write", "all", state)


class TestWriting:
    def test_sorts_what_comes(self):
        end = End()
        end.open().write_batch([row(0), letter(1), Dropped("r2"), row(3)])
        assert [found.n for found in end.rows.rows] == [0, 3]
        assert [found.fields["row_id"] for found in end.letters.rows] == ["r1"]
        assert [found.row_id for found in end.boxes[0].letters] == ["r1"]
        counts = end.job.counts["write"]
        assert (counts.rows, counts.dead, counts.dropped, counts.settled()) == (2, 1, 1, 4)

    def test_everything_goes_back_to_the_snapshot_together(self):
        end = End(mean=lambda found: found.n)
        part = end.open()
        part.write_batch([row(0), letter(1), Dropped("r2")])
        state = part.snapshot()
        part.write_batch([row(10), row(11), letter(12)])
        end.open(state)
        assert [found.n for found in end.rows.rows] == [0]
        assert len(end.letters.rows) == 1
        assert len(end.boxes[1].letters) == 1
        counts = end.job.counts["write"]
        assert (counts.rows, counts.dead, counts.dropped, counts.means()) == (1, 1, 1, {"mean": 0.0})
        assert end.job.rows_before == 3
        assert end.job.rows_here() == 0

    def test_a_snapshot_does_not_change_afterwards(self):
        end = End(mean=lambda found: found.n)
        part = end.open()
        part.write_batch([row(4)])
        state = part.snapshot()
        part.write_batch([row(8)])
        assert state["counts"]["rows"] == 1
        assert state["counts"]["measured"] == {"mean": (1, 4.0)}

    def test_a_sink_that_fails_is_remembered_with_its_place(self):
        end = End()
        part = end.open()

        def full(rows):
            raise OutputError("the disk is full")

        end.rows.write = full
        part.write_batch([row(0)])
        assert end.job.first_error[0] == "writing write"
        assert isinstance(end.job.first_error[1], OutputError)
        assert end.job.gate.failed
        with pytest.raises(OutputError):
            part.snapshot()

    def test_strict_raises_at_the_first_letter(self):
        end = End()
        part = end.open()
        end.job.strict, end.job.calm = True, False
        with pytest.raises(RowError, match="p, row 1: bad 1"):
            part.write_batch([row(0), letter(1)])


class TestLimit:
    def end(self, read, **limit):
        end = End(Limit(consecutive=None, **limit))
        part = end.open()
        end.job.calm = False
        end.job.read["p"] = read
        return end, part

    def test_a_ratio_counts_only_after_the_warm_up(self):
        end, part = self.end(10, ratio=0.5, warm_up=10)
        part.write_batch([letter(number) for number in range(9)])
        with pytest.raises(TooManyFailures, match="10 of 10 rows failed, more than 50%"):
            part.write_batch([letter(9)])
        assert len(end.letters.rows) == 10, "what failed is kept, the last one too"

    def test_rows_that_still_wait_for_a_model_count_as_well(self):
        self.end(100, ratio=0.5, warm_up=10)[1].write_batch([letter(number) for number in range(20)])

    def test_exactly_the_ratio_is_allowed(self):
        self.end(4, ratio=0.5, warm_up=2)[1].write_batch([row(0), letter(1), row(2), letter(3)])

    def test_it_can_be_off(self):
        self.end(0, ratio=None)[1].write_batch([letter(number) for number in range(1000)])

    def test_a_streak_ends_the_flow_once_its_letters_are_written(self):
        end, part = self.end(9, ratio=None)
        end.job.limit = Limit(consecutive=2)
        streak = end.job.streak("in a step")
        streak.failed()
        streak.failed()
        assert not end.job.gate.open
        with pytest.raises(TooManyFailures, match="2 rows failed one after the other in a step"):
            part.write_batch([letter(0), letter(1)])
        assert len(end.letters.rows) == 2


@pytest.mark.parametrize(
    ("rows", "stops"),
    [("++++", False), ("--", False), ("---", True), ("--+--", False), ("--+---", True), ("+-+-+-", False)],
)
def test_so_many_failures_in_a_row(rows, stops):
    told = []
    streak = Streak("in a step", 3, told.append)
    for kind in rows:
        (streak.passed if kind == "+" else streak.failed)()
    assert bool(told) == stops


@given(st.lists(st.sampled_from("rdx"), max_size=40), st.integers(0, 40))
def test_whatever_comes_is_in_one_of_the_totals(kinds, cut):
    made = {"r": row, "d": letter, "x": lambda number: Dropped(f"r{number}")}
    items = [made[kind](number) for number, kind in enumerate(kinds)]
    end = End(Limit(None, None))
    part = end.open()
    part.write_batch(items[:cut])
    again = end.open(part.snapshot())
    again.write_batch(items[cut:])
    counts = end.job.counts["write"]
    assert (counts.rows, counts.dead, counts.dropped) == tuple(map(kinds.count, "rdx"))
    assert len(end.rows.rows) == counts.rows
    assert len(end.letters.rows) == counts.dead
    assert counts.settled() == len(items)


def test_measures_skip_rows_without_a_value():
    counts = Counts(measured={"a": (2, 1.0), "never": (0, 0.0)})
    assert counts.means() == {"a": 0.5}


def test_a_row_that_ended_the_process_in_a_measure_is_written_and_not_measured(monkeypatch):
    end = End(n=lambda row: row.n, twice=lambda row: row.n * 2)
    part = end.open()
    noted = []
    monkeypatch.setattr(
        end.job, "deaths", lambda step, row_id: 3 if (step, row_id) == ("write, measure n", "r1") else 0
    )
    monkeypatch.setattr(end.job, "entered", lambda step, row_id: noted.append((step, row_id)))
    monkeypatch.setattr(end.job, "left", lambda: noted.append("left"))
    part.write_batch([row(1), row(3)])
    assert [found.id for found in end.rows.rows] == ["r1", "r3"]
    assert end.job.counts["write"].means() == {"n": 3.0, "n, rows it raised on": 1.0, "twice": 4.0}
    assert noted[1::2] == ["left"] * 4
    assert noted[0::2] == [(f"write, measure {name}", f"r{n}") for name in ("n", "twice") for n in (1, 3)]
