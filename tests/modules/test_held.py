"""Modules that hold a resource, wherever they stand in a program, and what becomes of dropped programs."""

import gc
import os
import threading
import time
from pathlib import Path

import pytest

import dspy_stream as ds
from dspy_stream.errors import ConfigurationError
from dspy_stream.modules import hosts
from dspy_stream.modules.recorded import Recorded
from dspy_stream.runtime import loop
from dspy_stream.runtime import run as on_loop
from tests.modules.process.programs import HoldsInside, Says


class Held(ds.Module):
    """Holds something, and counts how often."""

    def __init__(self):
        self.opened = self.closed = 0

    def open(self):
        self.opened += 1
        self.resource = 1

    def close(self):
        self.closed += 1
        del self.resource

    def forward(self, n):
        return ds.Prediction(m=n + self.resource)


class Plain(ds.Module):
    """Calls it in a plain forward."""

    def __init__(self, inner):
        self.inner = inner

    def forward(self, n):
        return self.inner(n=n)


class Positional(Plain):
    def forward(self, n):
        return self.inner(n)


class Awaits(Plain):
    async def aforward(self, n):
        return await self.inner.acall(n=n)

    forward = ds.Module.forward


class Owner(Plain):
    """Opens what is in it by itself."""

    def open(self):
        self.inner.open()

    def close(self):
        self.inner.close()


@pytest.fixture(autouse=True)
def ended():
    yield
    for found in hosts._process:
        on_loop(found.aclose())
    hosts._process.clear()


def flow(program, **options):
    rows = ds.Stream.from_iterable([{"n": n} for n in range(5)]).through(program, **options).to_list()
    return sorted(row["m"] for row in rows)


WRAPPED = {
    "plain": Plain,
    "positional": Positional,
    "awaits": Awaits,
    "recorded": Recorded,
    "best": lambda inner: ds.BestOfN(inner, 2, lambda args, pred: 1.0, 1.0),
    "deep": lambda inner: Plain(Recorded(Plain(inner))),
    "owner": Owner,
}


@pytest.mark.parametrize("wrap", list(WRAPPED))
@pytest.mark.parametrize("options", [{}, {"isolation": "thread"}, {"split": True}], ids=str)
def test_in_a_flow_it_is_opened_once_and_closed(wrap, options):
    held = Held()
    assert flow(WRAPPED[wrap](held), **options) == [1, 2, 3, 4, 5]
    assert (held.opened, held.closed) == (1, 1)


@pytest.mark.parametrize("wrap", [name for name in WRAPPED if name != "owner"])
def test_in_a_script_it_is_opened_once(wrap):
    held = Held()
    program = WRAPPED[wrap](held)
    assert [program(n=n).m for n in range(3)] == [1, 2, 3]
    assert held.opened == 1
    hosts.close_all()
    assert held.closed == 1


def test_what_its_owner_has_opened_is_not_opened_again():
    owner = Owner(Held())
    owner.open()
    assert owner(n=1).m == 2
    assert owner.inner.opened == 1


def test_one_that_is_called_by_itself_is_its_caller_s():
    held = Held()
    held.open()
    assert held(n=1).m == 2
    assert held.opened == 1


def test_a_part_with_options_is_not_called():
    program = Plain(Held().using(isolation="thread"))
    with pytest.raises(ConfigurationError, match="put it into a program"):
        program(n=1)


def test_a_program_in_a_process_closes_what_is_inside(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    assert flow(HoldsInside(), isolation="process", workers=1) == [0, 2, 4, 6, 8]
    log = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert log == ["open", "close"]


def wait_until(what):
    end = time.monotonic() + 60.0
    while not what():
        gc.collect()
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_dropped_program_takes_its_processes_with_it():
    program = ds.Program(part=Says().using(isolation="process", workers=1))
    pid = program(n=1).pid
    other = ds.Program(part=Says().using(isolation="process", workers=1))
    other(n=1)
    os.kill(pid, 0)
    del program
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert other(n=2).m == 4
    (found,) = hosts._process
    assert len(found._hosted) == len(found._open) == 1


def test_copies_that_are_dropped_leave_no_threads():
    for _ in range(5):
        copy = ds.Program(part=Says().using(isolation="thread", workers=2)).deepcopy()
        assert copy(n=1).m == 2
    del copy

    def left():
        return [thread for thread in threading.enumerate() if thread.name.startswith("part_Says")]

    wait_until(lambda: not left())
    assert loop().is_running()


@pytest.mark.timeout(120)
def test_a_module_that_is_run_many_times_keeps_nothing_of_its_runs():
    def here():
        gc.collect()
        return sum(isinstance(found, hosts.Hosts) for found in gc.get_objects())

    says, before = Says(), here()
    for _ in range(3):
        rows = ds.Stream.from_iterable([{"n": 1}]).through(says, isolation="thread").to_list()
        assert rows[0]["m"] == 2
    del rows
    wait_until(lambda: here() <= before)


def test_a_dropped_program_leaves_no_group_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    from tests.modules.process.programs import Holds

    program = ds.Program(part=Holds().using(isolation="process", workers=1))
    program(n=1)
    (found,) = hosts._process
    assert len(found._groups) == 1
    del program
    wait_until(lambda: not found._groups)
    wait_until(lambda: "close" in (tmp_path / "log").read_text())
