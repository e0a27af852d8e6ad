"""Work that is handed over to the loop it belongs to."""

import asyncio
import gc
import threading

import pytest

from dspy_stream.errors import ConfigurationError
from dspy_stream.program.types import elsewhere
from dspy_stream.program.types.elsewhere import Home


@pytest.fixture
def other():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def where():
    return asyncio.get_running_loop()


def test_without_a_loop_there_is_no_home():
    with pytest.raises(RuntimeError, match="no running event loop"):
        Home("it")


def test_work_runs_there_from_any_loop(other):
    home = Home("it", other)
    assert asyncio.run(home.run(where)) is other
    assert asyncio.run_coroutine_threadsafe(home.run(where), other).result() is other


def test_what_it_raises_is_raised(other):
    async def fails():
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        asyncio.run(Home("it", other).run(fails))


def test_it_is_cancelled_with_its_caller(other):
    begun, ended = threading.Event(), threading.Event()

    async def work():
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def main():
        task = asyncio.ensure_future(Home("it", other).run(work))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ended.wait(30)


def test_work_that_is_cancelled_there_is_no_cancelling_of_the_caller(other):
    async def work():
        raise asyncio.CancelledError

    with pytest.raises(ConfigurationError, match="the event loop of it does not run any more"):
        asyncio.run(Home("it", other).run(work))


def test_a_loop_that_stops_while_it_is_waited_for(other):
    async def work():
        other.call_soon(other.stop)
        await asyncio.Event().wait()

    with pytest.raises(ConfigurationError, match="does not run any more"):
        asyncio.run(Home("it", other).run(work))
    for task in asyncio.all_tasks(other):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            other.run_until_complete(task)


@pytest.mark.parametrize("given_up", [False, True])
@pytest.mark.parametrize("later", [False, True])
def test_a_loop_that_stops_before_it_has_begun(given_up, later, recwarn):
    loop = asyncio.new_event_loop()
    inside, goes_on = threading.Event(), threading.Event()

    def turn():
        inside.set()
        assert goes_on.wait(30)
        if later:  # the next turn, which is the one that hears of the work, is the last
            loop.call_soon(loop.stop)
        else:
            loop.stop()

    loop.call_soon(turn)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    assert inside.wait(30)

    async def main():
        task = asyncio.ensure_future(Home("it", loop).run(where))
        await asyncio.sleep(0)  # it is handed over
        if given_up:
            task.cancel()
        else:
            goes_on.set()
        with pytest.raises(asyncio.CancelledError if given_up else ConfigurationError):
            await task

    asyncio.run(main())
    goes_on.set()
    thread.join()
    loop.close()
    gc.collect()
    assert not recwarn.list


def test_a_loop_that_is_blocked(other, monkeypatch):
    monkeypatch.setattr(elsewhere, "_BLOCKED", 0.5)
    free = threading.Event()
    other.call_soon_threadsafe(free.wait)
    with pytest.raises(ConfigurationError, match="has not moved for"):
        asyncio.run(Home("it", other).run(where))
    free.set()


def test_another_process_is_refused(other, monkeypatch):
    home = Home("it", other)
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(ConfigurationError, match="belongs to another process"):
        asyncio.run(home.run(where))
