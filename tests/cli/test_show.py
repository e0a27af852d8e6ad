"""What a person sees of a run: the summary, the progress bar."""

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from dspy_stream.cli.main import fail
from dspy_stream.cli.show import progress, summary, through
from dspy_stream.errors import LMAuthError, LMConfigurationError, LMUnsupportedModelError
from dspy_stream.lm.batch.lane import Waiting
from dspy_stream.stream.report import PartReport, Report
from dspy_stream.stream.terminal import Counts


def console():
    return Console(file=io.StringIO(), width=120, force_terminal=False)


def test_a_summary_of_everything():
    report = Report(
        "demo", "stopped", rows_in=1234, rows_out=1200, dead_letters=30, dropped=4, calls=7, hits=9,
        prompt_tokens=100, completion_tokens=50, cost=None, measures={"accuracy": 0.5}, outputs=("o.jsonl",), resumed=True,  # noqa: E501
    )  # fmt: skip
    out = console()
    summary(out, report)
    text = out.file.getvalue()
    for words in (
        "demo: stopped; run again to go on (resumed)",
        "1,234",
        "unknown",
        "0.5000",
        "filtered out",
        "o.jsonl",
    ):
        assert words in text
    out = console()
    summary(out, Report("demo", "finished", cost=0.25))
    assert "$0.2500" in out.file.getvalue()
    assert "filtered out" not in out.file.getvalue()


def test_names_from_data_are_no_markup():
    out = console()
    summary(out, Report("[red]x[/red]\x1b[0m", "finished", measures={"[bold]m": 1.0}))
    text = out.file.getvalue()
    assert "[red]x[/red]" in text
    assert "[bold]m" in text
    assert "\x1b" not in text


def test_the_progress_bar_follows_the_job_and_ends():
    out = Console(file=io.StringIO(), width=120, force_terminal=True)
    job = SimpleNamespace(
        flow="demo",
        counts={"write": Counts(rows=5, dead=1, dropped=1)},
        bytes_read={"p": 10},
        pools={"ask": SimpleNamespace(running=3)},
        waiting=list,
    )
    close = progress(out, 10, None)(job)
    end = time.monotonic() + 5
    while "1 dead, 3 in flight" not in out.file.getvalue():
        assert time.monotonic() < end
        time.sleep(0.01)
    close()
    close()


def test_rows_that_were_read_ahead_are_no_progress():
    job = SimpleNamespace(bytes_read={"a": 1000, "b": 200}, rows_in=lambda: 120)
    assert [through(job, out) for out in (0, 30, 120, 500)] == [0, 300, 1200, 1200]
    assert through(SimpleNamespace(bytes_read={}, rows_in=lambda: 0), 0) == 0


def test_the_progress_bar_says_which_batch_is_waited_for():
    out = Console(file=io.StringIO(), width=160, force_terminal=True)
    waiting = [Waiting("batch_1", "in_progress", 40, 5000, 5000), Waiting("", "collecting a batch", 0, 0, 7)]
    job = SimpleNamespace(
        flow="demo",
        counts={"write": Counts(rows=5)},
        bytes_read={"p": 10},
        pools={},
        waiting=lambda: waiting,
    )
    close = progress(out, 10, None)(job)
    end = time.monotonic() + 5
    while "5,000 rows wait for batch_1 (in_progress, 40/5,000) and 1 more" not in out.file.getvalue():
        assert time.monotonic() < end
        time.sleep(0.01)
    close()


def test_the_summary_tells_the_parts_apart_where_there_are_several():
    first = PartReport("01_find", 10, 9, 1, retries=3, p50=0.0123, p95=2.5, most_in_flight=4, capacity=8)
    second = PartReport("02_answer", 9, 9, defaulted=2, fallbacks=1, restarts=2, worker_deaths=3)
    out = console()
    summary(out, Report("demo", "finished", parts=(first, second)))
    lines = [" ".join(line.split()) for line in out.file.getvalue().splitlines()]
    assert "01_find 10 9 1 dead 3 12.3 ms 2.5 s 4 of 8" in lines
    assert "02_answer 9 9 2 defaults, 1 fallback 0 2, 3 lost 0 of 0" in lines
    said = "each step, since this run went on"
    assert said not in out.file.getvalue()
    resumed = console()
    summary(resumed, Report("demo", "finished", resumed=True, parts=(first, second)))
    assert said in resumed.file.getvalue()
    one = console()
    summary(one, Report("demo", "finished", parts=(first,)))
    assert "01_find" not in one.file.getvalue()


def test_an_error_of_a_model_names_the_model_and_a_refused_key_its_variable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = []
    for error in (
        LMAuthError("401: wrong key", model="openai/gpt-4o-mini", status=401),
        LMConfigurationError("openai/x: no API key; set OPENAI_API_KEY", model="openai/x"),
        LMUnsupportedModelError("404: no such model", model="mine/x"),
        LMAuthError("401: wrong key", model="mine/x", status=401),
    ):
        with pytest.raises(SystemExit):
            fail(error)
        said.append(capsys.readouterr().err)
    assert said == [
        "dspy-stream: [openai/gpt-4o-mini] 401: wrong key; the key is api_key=... or in OPENAI_API_KEY\n",
        "dspy-stream: openai/x: no API key; set OPENAI_API_KEY\n",
        "dspy-stream: [mine/x] 404: no such model\n",
        "dspy-stream: [mine/x] 401: wrong key; the key is api_key=...\n",
    ]
