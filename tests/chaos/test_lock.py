"""F5, F36: one state folder, one process."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.chaos.crash import Place, pipeline_fate, until
from tests.chaos.test_stop import held


def startup(place: Place) -> float:
    """Seconds that this machine needs now for a run that gets as far as its state folder."""
    process = place.start("--state", str(place.path(place.input)))
    assert process.wait() == 74, process.stderr
    return process.seconds


def test_the_second_process_leaves_and_names_the_first(place: Place, log: Path) -> None:
    held(place, log)
    first = place.start()
    until(lambda: log.exists() and b"@hold" in log.read_bytes(), "the first to work")
    for paused in (False, True):
        if paused:
            first.signal(signal.SIGSTOP)
        slow = startup(place)
        second = place.start()
        assert second.wait() == 75, second.stderr
        print(f"refused after {second.seconds:.2f} s; one that is refused for its folder takes {slow:.2f} s")
        assert second.seconds < 2.0 + 2 * slow
        assert str(first.child.pid) in second.stderr
        assert str(place.state_folder) in second.stderr
        assert "Traceback" not in second.stderr
    first.signal(signal.SIGCONT)
    place.path("hold").unlink()
    assert first.wait() == 0, first.stderr
    assert place.verdict(pipeline_fate).problems == {}


def test_of_two_that_start_together_one_runs(place: Place, log: Path) -> None:
    held(place, log)
    first = place.start()
    first.alive_for(0.05)
    second = place.start()
    until(lambda: first.child.poll() is not None or second.child.poll() is not None, "one of them to leave")
    place.path("hold").unlink()
    assert sorted((first.wait(), second.wait())) == [0, 75], first.stderr + second.stderr
    assert place.verdict(pipeline_fate).problems == {}


def test_a_killed_process_leaves_no_lock(place: Place, log: Path) -> None:
    held(place, log)
    first = place.start()
    until(lambda: log.exists() and b"@hold" in log.read_bytes(), "the first to work")
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    place.path("hold").unlink()
    place.run()
    assert place.verdict(pipeline_fate).problems == {}


def test_one_may_look_while_another_runs(place: Place, log: Path) -> None:
    held(place, log)
    first = place.start()
    until(lambda: log.exists() and b"@hold" in log.read_bytes(), "the first to work")
    place.verb("dlq", "list", str(place.state_folder), "--json")
    place.verb("state", "inspect", str(place.state_folder), "--json")
    place.path("hold").unlink()
    assert first.wait() == 0, first.stderr
