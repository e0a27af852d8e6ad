"""Threads for code that may block."""

from __future__ import annotations

import threading

from dspy_stream.threads import DaemonThreads


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
