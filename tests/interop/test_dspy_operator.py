"""Unchanged programs of DSPy as steps of flows, under the DSPy of today and of 2.6."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dspy_stream as ds
from dspy_stream.errors import ConfigurationError, FlowError
from dspy_stream.interop import DSPyModule

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from environments import MAKING, VERSIONS, environment, python_of  # noqa: E402
from paid_server import PaidServer  # noqa: E402

# Any of these may be the first that needs an environment, and the first that runs the programs in it.
pytestmark = pytest.mark.timeout(MAKING + 360)


@pytest.fixture(scope="module", params=list(VERSIONS))
def which(request):
    python_of(request.param)
    return request.param


@pytest.fixture(scope="module")
def seen(which):
    done = subprocess.run(
        [python_of(which), str(HERE / "operate.py")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["what"]: line["value"] for line in lines}


PROGRAMS = (
    "predict",
    "typed",
    "thinking",
    "several",
    "agent",
    "forward",
    "aforward",
    "parallel",
    "called",
    "louder",
)


@pytest.mark.parametrize("form", ["", " as JSON"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_answers_and_prompts_as_dspy_alone(seen, name, form):
    found = seen[f"same: {name}{form}"]
    assert found["ours"] == found["theirs"]
    assert len(found["ours"]) == 4
    assert found["prompts"], "other prompts were sent"
    assert found["kept"], "fields of the row were lost"
    theirs, ours = found["calls"]
    # DSPy's threads ask once more after the program has run on the loop in vain; the journal answers.
    assert ours == theirs


def test_rows_overlap(seen, which):
    for isolation in ("inline", "thread") if which == "current" else ("thread",):
        found = seen[f"overlap: {isolation}"]
        assert found["right"]
        assert found["most"] == 50
        assert found["seconds"] < 10, "200 calls of 0.1 s, 50 at a time; one after the other they take 20 s"


@pytest.mark.parametrize("kind", ["Two", "Later", "Threads"])
def test_rows_do_not_mix(seen, kind):
    assert seen[f"apart: {kind}"] == [100, True, None]


@pytest.mark.parametrize("kind", ["Mixed", "MixedLater", "Careless"])
def test_threads_and_loops_of_the_programs_own(seen, kind):
    assert seen[f"mixed: {kind}"] == 30


@pytest.mark.parametrize("kind", ["Threads", "Mixed"])
def test_what_its_threads_could_not_read_is_asked_anew(seen, kind):
    assert seen[f"mixed: {kind} again"] == [3, 0]


@pytest.mark.parametrize("kind", ["predictor", "module"])
def test_a_conversation_in_a_row_is_one_for_dspy(seen, kind):
    long = ["system", "user", "assistant", "user"]
    assert seen[f"talks: {kind}"] == [["A0", "A1", "A2"], [["system", "user"], long, long]]


def test_failures_become_dead_letters(seen):
    assert seen["dead_letters: counts"] == [9, 4, 5]
    found = seen["dead_letters: errors"]
    assert {name: error["type"] for name, error in found.items()} == {
        "parse:3": "AdapterParseError",
        "call:4": "LMInvalidRequestError",
        "module:5": "KeyError",
        "call:6": "ContextWindowExceededError",
        "check:8": "RecordError",
    }
    assert found["parse:3"]["answer"] == "I do not know"
    assert "I do not know" not in found["parse:3"]["message"]
    assert "`answer`" in found["parse:3"]["message"]
    assert found["call:4"]["message"] == "too rude"


def test_another_attempt_asks_for_other_answers(seen):
    assert seen["dead_letters: tried again"] == [1, 3, True]


@pytest.mark.parametrize("kind", ["stops", "stops a careless program"])
def test_what_concerns_the_flow_stops_it(seen, kind):
    assert seen[f"dead_letters: {kind}"] == "no such key"


def test_a_budget_holds_and_nothing_is_paid_twice(seen):
    assert seen["money: refused"] == ["max_calls", 20, 0]
    assert seen["money: resumed"] == [30, 60, 60, 1]
    assert seen["money: journal"] == [30, 60, 60]


def test_whose_model_is_asked(seen):
    assert seen["models: own"] == "from a demo"
    assert seen["models: run"] == 1
    assert seen["models: configured"] == "configured"
    assert len(seen["models: instead"]) == 2, "a model that the run does not ask keeps it from nothing"
    assert seen["models: allowed"] == 1


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("custom", ["ConfigurationError", "'first'", "Alone", "StreamLM"]),
        ("configured", ["ConfigurationError", "Alone", "StreamLM"]),
        ("unknown", ["ConfigurationError", "'first'", "nobody/model"]),
        ("keyless", ["ConfigurationError", "OPENAI_API_KEY"]),
        ("wild", ["ConfigurationError", "self.judge", "StreamLM"]),
        ("none", ["LMNotConfiguredError"]),
        ("part", ["ConfigurationError", "DSPyModule"]),
        ("class", ["ConfigurationError", "dspy.Module"]),
        ("split", ["FlowError", "Example"]),
    ],
)
def test_what_cannot_be_is_said_before_any_row(seen, what, said):
    found = seen["models: refused"][what]
    assert all(words in found for words in said), found


def test_agents(seen, which):
    doubled = ["0", "2", "4", "6", "8"]
    assert seen["agents: async tools"] == doubled
    assert seen["agents: async tools in threads"] == doubled
    assert seen["agents: shortened"] == [1, "A0"], "ReAct drops its oldest call when the prompt is too long"
    answers, rollouts = seen["agents: best"]
    if which == "current":
        assert answers == ["third", "third"]
        assert rollouts == [0, 0, 1, 1, 2, 2]
    else:
        assert answers == ["A0", "A1"]


def test_threads(seen, which):
    out, dead, seconds = seen["threads: blocking code"]
    assert (out, len(dead)) == (39, 1)
    assert seconds < 4.5, "the row that sleeps for 5 s was waited for"
    said = seen["threads: inline"]
    assert "ConfigurationError" in said
    assert "isolation='thread'" in said if which == "current" else "3.0 or later" in said
    assert "'process'" in seen["threads: choice"]


def test_what_a_program_is(seen):
    assert seen["identity: same"] is True
    assert seen["identity: different"] == [7, 7]
    assert seen["identity: after use"] is True
    assert seen["identity: changed"].startswith("ProgramChanged")


def test_saved_states(seen):
    assert seen["identity: loaded"] is True
    assert all("JSON" in said for said in seen["identity: pickles"])


def test_worker_processes_ask_with_what_was_learned(seen):
    inline, there = seen["processes: learned"]
    assert there == inline
    assert "a demo" in str(there[1][0])
    assert "What was learned." in str(there[1][0])
    assert inline[:2] == seen["processes: plain factory"][:2] == seen["processes: no factory"][:2]
    assert inline[:2] == seen["processes: nested"]
    inline, there = seen["processes: options"]
    assert inline == there
    assert [options.get("temperature") for options in there] == [0.25, None]
    assert "predictor 'first' of Two has another signature" in seen["processes: changed"]
    assert "'first' of Two has a model of its own" in seen["processes: own model"]


def test_dspy_keeps_nothing(seen):
    same, kept = seen["nothing_is_kept: history"]
    assert same
    assert kept == [0, 0, 0]


def test_usage_where_it_is_asked_for(seen):
    paid, found = seen["nothing_is_kept: usage"]
    assert paid == {"scripted/model": {"prompt_tokens": 14, "completion_tokens": 4, "total_tokens": 18}}
    assert not found, "the journal's answers cost nothing"


def test_a_model_for_dspy(seen, which):
    def found(what):
        return seen[f"a_model_for_dspy: {what}"]

    thought = {"text": "hello", "reasoning_content": "hm"}
    assert found("prompt") == found("awaited") == [thought]
    assert found("logprobs") == [{**thought, "logprobs": {"content": []}}]
    assert found("again") == [2, [thought], 2]
    assert found("several") == 3
    assert found("forward") == ["hello", "stop", "m", True, {}]
    assert found("paid") == [3, 7]
    assert found("tools")[0]["tool_calls"][0]["function"]["name"] == "double"
    options, rollout, copied, kept = found("copied")
    assert (options, rollout) == ({"temperature": 1.0}, 3)
    assert copied["temperature"] == 1.0
    assert kept == {"temperature": 0.2, "max_tokens": None, "top_p": 0.5}
    assert found("state")["temperature"] == 0.2
    assert all("LMConfigurationError" in said for said in found("refused"))
    saved, kept, cache, server = found("named")
    assert "sk-a-key" not in str(saved) + str(kept)
    assert (saved["temperature"], saved["api_base"], cache, server) == (
        0.5,
        server,
        False,
        "http://127.0.0.1:1/v1",
    )
    if which == "current":
        form = found("form")["json_schema"]
        assert form["strict"]
        assert form["schema"]["required"] == ["answer", "who"]
        assert found("request") == "Response"
    assert found("native tools")[:2] == ["double", {"value": 4}]


def test_what_goes_in_and_out(seen, which):
    def found(what):
        return seen[f"names: {what}"]

    assert found("predict") == [["a", "b"], ["a", "b"], ["c", "d"], "Predict"]
    required = ["text"] if which == "current" else ["text", "tags"]
    assert found("typed") == [["text", "tags"], required, ["intent", "urgency", "who"], "Predict"]
    assert found("thinking") == [["a"], ["a"], ["reasoning", "b"], "ChainOfThought"]
    assert found("agent") == [["a"], ["a"], None, "ReAct"]
    assert found("forward") == [["question"], ["question"], None, "Two"]
    assert found("aforward") == [["question"], ["question"], None, "Later"]
    assert found("any") == [None, ["question"], None, "Extra"]
    assert found("best") == [["a"], ["a"], None, "BestOfN"]
    assert found("privileged") == "A1"
    assert "'question'" in found("missing")


def test_killed_and_resumed_it_pays_nothing_twice(which, tmp_path):
    rows, capacity = 120, 10
    server = PaidServer(latency=0.03)
    arguments = [server.base, str(tmp_path / "state"), str(tmp_path / "out.jsonl"), str(rows), str(capacity)]
    command = [python_of(which), str(HERE / "killed.py"), *arguments]
    in_the_works = 0
    try:
        for most in (60, 150):
            process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
            while server.total < most and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            in_the_works += capacity
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=120, check=False
        )
    finally:
        server.close()
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[:2] == [str(rows), "True"]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(line["other"] for line in lines) == list(range(rows))
    assert all(line["answer"] == "the answer" for line in lines)
    assert len(server.asked) == 2 * rows
    # At most the calls that were in flight when it died are asked again.
    assert server.total <= 2 * rows + in_the_works


@pytest.mark.timeout(60)
def test_without_dspy_it_says_what_to_install():
    code = (
        "import sys; sys.modules['dspy'] = None\n"
        "from dspy_stream.errors import ConfigurationError\n"
        "try:\n    from dspy_stream.interop import StreamLM\n"
        "except ConfigurationError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert "dspy_stream[dspy]" in done.stdout


def test_the_flow_says_what_to_install():
    root = HERE.parents[1]
    code = "import sys; sys.modules['dspy'] = None\nimport runpy\nrunpy.run_path('flows/dspy_program.py')\n"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False, cwd=root
    )
    assert done.returncode != 0
    assert "dspy_stream[dspy]" in done.stderr


def test_the_flow_runs(which, tmp_path):
    root = HERE.parents[1]
    main = "from dspy_stream.cli import main; main()"
    command = [python_of(which), "-c", main, "run", str(root / "flows" / "dspy_program.py")]
    options = ["--output", str(tmp_path / "out.jsonl"), "--state", str(tmp_path / "state"), "--limit", "60"]
    done = subprocess.run(
        [*command, *options, "--json"],
        env=environment(),
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["rows_out"] == 60
    assert report["measures"]["accuracy"] > 0.3


def test_a_class_that_only_has_the_name_is_no_program_of_dspys():
    class Module:
        pass

    with pytest.raises(FlowError, match="through"):
        ds.Stream.from_iterable([]).through(Module())
    with pytest.raises(ConfigurationError, match=r"dspy\.Module"):
        DSPyModule(Module())


if os.name == "nt":
    pytest.skip("the tests kill processes by signals", allow_module_level=True)
