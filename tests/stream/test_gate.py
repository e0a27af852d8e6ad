"""The gate: sources wait while rows are held, and a stop goes through it."""

import asyncio
from datetime import datetime, timedelta, timezone

import pytest
from bytewax.inputs import AbortExecution

from dspy_stream.errors import BudgetExceeded
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Predict
from dspy_stream.stream import Stream, gate
from dspy_stream.stream.gate import ControlSource, Gate, GatedSource
from dspy_stream.stream.job import Job
from dspy_stream.stream.sinks import MemorySink
from dspy_stream.stream.sources import from_iterable


class Holder:
    def __init__(self, high=10):
        self.high = high
        self.backlog = 0
        self.queued = 0
        self.fatal = None


@pytest.fixture
def job():
    return Job("test", "digest")


def source_of(job, count):
    return GatedSource(from_iterable([{"n": number} for number in range(count)]), job)


def part_of(source, state=None):
    return source.build_part("step", source.list_parts()[0], state)


class TestReading:
    def test_rows_come_in_bounded_reads(self, job):
        part = part_of(source_of(job, 600))
        sizes = [len(part.next_batch()) for _ in range(4)]
        assert max(sizes) <= gate._READ
        assert sum(sizes) == 600
        assert sum(job.read.values()) == 600

    def test_above_the_mark_nothing_is_read(self, job):
        holder = Holder(high=10)
        job.gate.holders.append(holder)
        part = part_of(source_of(job, 600))
        assert len(part.next_batch()) > 0
        holder.backlog = 10
        before = dict(job.read)
        assert part.next_batch() == []
        assert part.next_awake() > datetime.now(timezone.utc)
        assert job.read == before
        holder.backlog = 9
        assert len(part.next_batch()) > 0

    def test_one_full_holder_of_many_is_enough(self):
        door = Gate()
        door.holders += [Holder(), Holder()]
        assert door.open
        door.holders[1].backlog = 10
        assert not door.open

    def test_where_there_are_many_sources_each_asks_more_rarely(self):
        door = Gate()
        door.opened(1)
        few = door.pause
        for _ in range(999):
            door.opened(1)
        many = door.pause
        for _ in range(1000):
            door.opened(-1)  # those that have ended wait for the end of the flow
        assert (few, many, door.pause) == (timedelta(milliseconds=5), *[timedelta(milliseconds=50)] * 2)
        for _ in range(99_000):
            door.opened(1)
        assert door.pause == timedelta(milliseconds=250)

    def test_the_end_waits_until_no_row_is_held(self, job):
        holder = Holder()
        job.gate.holders.append(holder)
        part = part_of(source_of(job, 1))
        part.next_batch()
        holder.backlog = 1
        for _ in range(10):
            assert part.next_batch() == []
        holder.backlog = 0
        with pytest.raises(StopIteration):  # noqa: PT012
            for _ in range(5):
                part.next_batch()

    def test_the_end_waits_for_other_partitions(self, job):
        job.gate.opened(1)
        part = part_of(source_of(job, 0))
        for _ in range(10):
            assert part.next_batch() == []
        job.gate.opened(-1)
        with pytest.raises(StopIteration):  # noqa: PT012
            for _ in range(5):
                part.next_batch()

    def test_a_snapshot_resumes_where_it_was(self, job):
        source = source_of(job, 600)
        part = part_of(source)
        part.next_batch()
        state = part.snapshot()
        again = part_of(source, state)
        rest = [row.n for _ in range(3) for row in again.next_batch()]
        assert rest == list(range(state["rows"], 600))
        assert sum(job.read.values()) == 600


class TestStopping:
    def test_reads_nothing_more_and_ends_only_after_a_commit_of_the_settled_state(self, job):
        holder = Holder()
        job.gate.holders.append(holder)
        part = part_of(source_of(job, 600))
        part.next_batch()
        holder.backlog, holder.queued = 5, 3
        job.gate.stop = True
        part.snapshot()
        for _ in range(5):
            assert part.next_batch() == [], "two rows are in flight"
        holder.backlog = 3
        for _ in range(5):
            assert part.next_batch() == [], "the state has not been committed"
        part.snapshot()
        with pytest.raises(AbortExecution):
            part.next_batch()
        assert job.gate.abort
        assert sum(job.read.values()) == gate._READ

    def test_a_snapshot_from_before_the_stop_does_not_count(self, job):
        part = part_of(source_of(job, 600))
        part.next_batch()
        part.snapshot()
        job.gate.stop = True
        assert part.next_batch() == []

    def test_the_control_source_ends_every_worker(self):
        door = Gate()
        part = ControlSource(door).build("control", 0, 2)
        assert part.next_batch() == []
        door.over = True
        with pytest.raises(StopIteration):
            part.next_batch()
        door.abort = True
        with pytest.raises(AbortExecution):
            part.next_batch()

    def test_a_stop_that_comes_after_the_end_is_too_late(self, job):
        """A control source that has ended could not end its worker, which would hang."""
        first, second = part_of(source_of(job, 0)), part_of(source_of(job, 0))
        for _ in range(gate._QUIET - 1):
            assert first.next_batch() == second.next_batch() == []
        with pytest.raises(StopIteration):
            second.next_batch()
        job.gate.stop = True
        with pytest.raises(StopIteration):
            first.next_batch()

    def test_a_budget_that_is_used_up_stops_like_a_signal(self, job):
        part = part_of(source_of(job, 600))
        part.next_batch()
        job.halt(BudgetExceeded("the budget is used up"))
        assert job.gate.closing
        for _ in range(5):
            assert part.next_batch() == []
        part.snapshot()
        with pytest.raises(AbortExecution):
            part.next_batch()
        assert job.gate.abort


class TestBackpressure:
    @pytest.mark.parametrize(("steps", "files"), [(1, 1), (2, 1), (1, 3)])
    def test_rows_read_ahead_are_those_that_steps_may_hold_and_a_read_of_each_file(
        self, tmp_path, steps, files
    ):
        jobs, most = [], 0
        for name in range(files):
            lines = [b'{"question":"%d of %d"}\n' % (n, name) for n in range(6000 // files)]
            (tmp_path / f"{name}.jsonl").write_bytes(b"".join(lines))

        async def answer(request):
            nonlocal most
            most = max(most, jobs[0].rows_in() - jobs[0].rows_here())
            await asyncio.sleep(0)
            return {"answer": "x", "short": "x"}

        stream = Stream.read(f"{tmp_path}/*.jsonl").through(Predict("question -> answer"), capacity=4)
        if steps == 2:
            stream = stream.through(Predict("answer, question -> short"), capacity=4)
        watch = lambda job: (jobs.append(job), lambda: None)[1]  # noqa: E731
        lm = ScriptedLM(answer, record=False)
        stream.write(MemorySink()).run(state=None, quiet=True, lm=lm, watch=watch)
        assert 1024 < most <= steps * (4 * 4 + 1024) + files * gate._READ

    @pytest.mark.parametrize(("workers", "total"), [(1, 6000), (2, 24_000)])
    def test_rows_held_are_bounded_by_the_step_and_not_by_the_input(self, workers, total):
        most = 0
        jobs = []

        async def answer(request):
            nonlocal most
            most = max(most, sum(pool.backlog for pool in jobs[0].pools.values()))
            await asyncio.sleep(0)
            return {"answer": "x"}

        def watch(job):
            jobs.append(job)
            return lambda: None

        sink = MemorySink()
        flow = Stream.from_iterable([{"question": str(n)} for n in range(total)]).through(
            Predict("question -> answer"), capacity=4
        )
        report = flow.write(sink).run(
            state=None, quiet=True, lm=ScriptedLM(answer, record=False), watch=watch, workers=workers
        )
        assert report.rows_out == total
        (pool,) = jobs[0].pools.values()
        assert pool.high < total / 3
        # Between two workers rows are on their way for a while, seen by neither side: the more, the longer
        # one waits for the other, but no share of the input.
        on_the_way = gate._READ if workers == 1 else 6 * pool.high
        assert most <= pool.high + on_the_way, "a read in progress may still come on top"
        assert pool.backlog == 0
