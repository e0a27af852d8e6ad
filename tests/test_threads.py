"""Threads for code that may block."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from dspy_stream.threads import DaemonThreads, interrupts_nobody


def test_no_more_than_the_limit_and_each_is_used_again() -> None:
    threads = DaemonThreads(2, "few")
    futures = [threads.submit(lambda number=number: number) for number in range(20)]
    assert [future.result(20.0) for future in futures] == list(range(20))
    assert threads.count <= 2
    threads.close()


def test_a_job_that_is_left_gives_its_place_to_the_next_and_its_thread_ends() -> None:
    threads = DaemonThreads(1, "one")
    begun, over, where = threading.Event(), threading.Event(), []

    def hang() -> None:
        where.append(threading.current_thread())
        begun.set()
        over.wait()

    hung = threads.submit(hang)
    behind = threads.submit(threading.current_thread)
    assert begun.wait(20.0)
    threads.leave(hung)
    threads.leave(hung)
    assert threads.left == 1
    other = behind.result(20.0)
    assert other is not where[0]
    assert threads.submit(threading.current_thread).result(20.0) is other, "one place is one thread"
    over.set()
    where[0].join(20.0)
    assert not where[0].is_alive()
    assert threads.left == 0
    threads.close()


def test_a_job_that_is_left_before_it_began_is_not_run() -> None:
    threads = DaemonThreads(1, "one")
    over, ran = threading.Event(), []
    first = threads.submit(over.wait)
    second = threads.submit(lambda: ran.append(1))
    threads.leave(second)
    over.set()
    assert first.result(20.0)
    assert threads.submit(lambda: "last").result(20.0) == "last"
    assert ran == []
    threads.close()


linux = pytest.mark.skipif(sys.platform != "linux", reason="policies of Linux")


def policies(before: int) -> list[int]:
    """Of a thread that began with one, once it interrupts nobody; and then of ours."""
    found: list[int] = []

    def go() -> None:
        os.sched_setscheduler(0, before, os.sched_param(0))
        interrupts_nobody()
        found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    return [*found, os.sched_getscheduler(0)]


@linux
def test_a_thread_interrupts_nobody_and_others_are_as_before() -> None:
    assert policies(os.SCHED_OTHER) == [os.SCHED_BATCH, os.SCHED_OTHER]


@linux
def test_how_a_process_was_told_to_be_scheduled_stays() -> None:
    assert policies(os.SCHED_IDLE) == [os.SCHED_IDLE, os.SCHED_OTHER]


# Ends the process for sched_setscheduler, as systemd's `SystemCallFilter=~@resources` does.
_FILTERED = """
import ctypes, os, struct
from dspy_stream.threads import interrupts_nobody
number = {"x86_64": 144, "aarch64": 119}.get(os.uname().machine, 0xFFFFFFFF)
code = [(32, 0, 0, 0), (21, 0, 1, number), (6, 0, 0, 0x80000000), (6, 0, 0, 0x7FFF0000)]
code = b"".join(struct.pack("=HBBI", *each) for each in code)
held = ctypes.create_string_buffer(code, len(code))
filter = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(held)))
libc = ctypes.CDLL(None)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(filter), 0, 0):
    print("no filters here")
else:
    interrupts_nobody()
    print("alive")
"""


@linux
def test_a_service_whose_system_calls_are_filtered_lives_on() -> None:
    made = subprocess.run(
        [sys.executable, "-c", _FILTERED],
        env={**os.environ, "INVOCATION_ID": "0" * 32},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.stdout in ("alive\n", "no filters here\n"), (made.returncode, made.stderr)
