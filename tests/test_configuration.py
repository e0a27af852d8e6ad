"""Settings: what goes before what, where they come from, and who is told of a change."""

import asyncio
import contextvars
import os
import subprocess
import sys
import threading

import pytest

import dspy_stream as ds
from dspy_stream import configuration
from dspy_stream.configuration import configure, context, reload, settings
from dspy_stream.environment import count, flag, read_environment, read_project, text
from dspy_stream.errors import ConfigurationError
from dspy_stream.lm.scripted import ScriptedLM

KNOWN = {"num_threads": count, "track_usage": flag, "lm": text}


@pytest.fixture(autouse=True)
def own_settings(monkeypatch):
    """Settings as they are in a new process, in a folder without a project."""
    monkeypatch.setattr(configuration, "_given", {})
    monkeypatch.setattr(configuration, "_found", {})
    monkeypatch.setattr(configuration, "shared_trace", None)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A function that writes a pyproject.toml in the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(body):
        (tmp_path / "pyproject.toml").write_text(body)
        return tmp_path / "pyproject.toml"

    return write


class TestOrder:
    def test_default_file_environment_configure_context(self, project, monkeypatch):
        assert settings.num_threads == 8
        project("[tool.dspy_stream]\nnum_threads = 2\n")
        reload()
        assert settings.num_threads == 2
        monkeypatch.setenv("DSPY_STREAM_NUM_THREADS", "3")
        reload()
        assert settings.num_threads == 3
        configure(num_threads=4)
        assert settings.num_threads == 4
        with context(num_threads=5):
            assert settings.num_threads == 5
            configure(num_threads=6)
            assert settings.num_threads == 5
            with context(track_usage=True):
                assert (settings.num_threads, settings.track_usage) == (5, True)
        assert (settings.num_threads, settings.track_usage) == (6, False)

    def test_they_are_looked_for_once_when_one_is_wanted(self, project, monkeypatch):
        monkeypatch.setattr(configuration, "_found", None)
        path = project("[tool.dspy_stream]\nlm = 'local/nearest'\n")
        assert settings.lm == "local/nearest"
        path.unlink()
        assert settings.lm == "local/nearest"
        reload()
        assert settings.lm is None

    def test_none_by_configure_goes_before_the_file(self, project):
        project("[tool.dspy_stream]\nlm = 'local/nearest'\n")
        reload()
        configure(lm=None)
        assert settings.lm is None

    def test_in_a_process_of_its_own(self, tmp_path):
        (tmp_path / "pyproject.toml").write_text(
            '[tool.dspy_stream]\nlm = "local/nearest"\nadapter = "json"\n'
        )
        folder = tmp_path / "below" / "further"
        folder.mkdir(parents=True)
        code = (
            "import dspy_stream as ds\n"
            "print(ds.settings.lm, ds.settings.adapter, ds.settings.track_usage)\n"
            "qa = ds.Predict('question -> answer')\n"
            "qa.demos = [{'question': 'q', 'answer': 'a'}]\n"
            "print(qa(question='q').answer, ds.settings.lm)\n"
        )
        environ = {**os.environ, "DSPY_STREAM_TRACK_USAGE": "yes"}
        made = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
        )
        assert made.stderr == ""
        assert made.stdout == "local/nearest json True\na local/nearest\n"


class TestErrors:
    def test_a_setting_that_is_not_there(self):
        with pytest.raises(ConfigurationError, match="did you mean 'track_usage'"):
            configure(track_usages=True)
        with pytest.raises(ConfigurationError, match="did you mean 'lm'"), context(lms=1):
            pass
        with pytest.raises(AttributeError, match="no setting 'zzz'"):
            settings.zzz  # noqa: B018
        with pytest.raises(KeyError, match="no setting 'zzz'"):
            settings["zzz"]

    def test_a_name_of_the_programs_own_is_kept_for_it(self):
        with context(tenant="bank"):
            assert settings.tenant == settings["tenant"] == settings.get("tenant") == "bank"
            assert "tenant" in settings
            assert settings.copy()["tenant"] == "bank"
        assert "tenant" not in settings
        assert settings.get("tenant", 3) == 3

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ("[tool.dspy_stream]\nnum_thread = 2\n", "'num_thread', which no file can set"),
            ("[tool.dspy_stream]\nnum_threads = 'x'\n", r"num_threads is 'x'; it must be a whole number"),
            ("[tool.dspy_stream]\nnum_threads = true\n", "num_threads is True"),
            ("[tool.dspy_stream]\nnum_threads = -1\n", "num_threads is -1"),
            (
                "[tool.dspy_stream]\ntrack_usage = 'perhaps'\n",
                "track_usage is 'perhaps'; it must be true or false",
            ),
            ("[tool.dspy_stream]\nlm = 3\n", "lm is 3; it must be a text"),
            ("[tool.dspy_stream]\nlm = ''\n", "lm is ''"),
            ("[tool.dspy_stream]\njournal = 'x'\n", "'journal', which no file can set"),
            ("[tool.dspy_stream]\ncallbacks = []\n", "'callbacks', which no file can set"),
            ("[tool]\ndspy_stream = 3\n", "is a table of settings"),
            ("[tool.dspy_stream\n", "is not TOML"),
        ],
    )
    def test_file_and_key_are_named(self, project, body, words):
        path = project(body)
        with pytest.raises(ConfigurationError, match=words) as raised:
            reload()
        assert str(path) in str(raised.value)
        assert settings.num_threads == 8

    def test_a_variable_is_named(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DSPY_STREAM_MAX_ERRORS", "many")
        with pytest.raises(
            ConfigurationError, match=r"DSPY_STREAM_MAX_ERRORS is 'many'; it must be a whole number"
        ):
            reload()

    def test_a_long_value_is_cut(self):
        with pytest.raises(ConfigurationError) as raised:
            read_environment({"DSPY_STREAM_NUM_THREADS": "x" * 9999}, KNOWN)
        assert len(str(raised.value)) < 200

    def test_a_broken_file_of_somebody_elses_is_none_of_our_business(self, tmp_path):
        (tmp_path / "pyproject.toml").write_text("[tool.other\n")
        assert read_project(tmp_path, KNOWN) == {}

    def test_bytes_that_are_no_text(self, tmp_path):
        (tmp_path / "pyproject.toml").write_bytes(b"[tool.dspy_stream]\nlm = '\xff'\n")
        with pytest.raises(ConfigurationError, match="is not TOML"):
            read_project(tmp_path, KNOWN)

    @pytest.mark.parametrize("value", ["1", "true", "Yes", "ON"])
    def test_ways_to_say_yes(self, value):
        assert read_environment({"DSPY_STREAM_TRACK_USAGE": value}, KNOWN) == {"track_usage": True}

    @pytest.mark.parametrize("value", ["0", "false", "No", "OFF", ""])
    def test_and_no(self, value):
        assert read_environment({"DSPY_STREAM_TRACK_USAGE": value}, KNOWN) == {"track_usage": False}

    @pytest.mark.parametrize("value", ["1.5", "-1", "1e3", "٣", "9" * 5000])
    def test_what_is_no_count(self, value):
        with pytest.raises(ConfigurationError):
            read_environment({"DSPY_STREAM_NUM_THREADS": value}, KNOWN)

    def test_variables_of_other_names_are_left_alone(self):
        assert read_environment({"DSPY_STREAM_SOMETHING": "x"}, KNOWN) == {}

    def test_an_adapter_by_name(self):
        lm = ScriptedLM(['{"answer": "4"}'])
        with context(lm=lm, adapter="json"):
            assert ds.Predict("question -> answer")(question="q").answer == "4"
        with (
            context(lm=lm, adapter="yaml"),
            pytest.raises(ConfigurationError, match=r"no adapter 'yaml'.*chat"),
        ):
            ds.Predict("question -> answer")(question="q")


class TestThreadsAndTasks:
    def test_any_thread_may_configure(self):
        thread = threading.Thread(target=configure, kwargs={"num_threads": 3})
        thread.start()
        thread.join()
        assert settings.num_threads == 3

    def test_a_context_is_of_one_thread(self):
        seen = []
        with context(num_threads=3):
            threads = [
                threading.Thread(target=lambda: seen.append(settings.num_threads)),
                threading.Thread(
                    target=contextvars.copy_context().run, args=(lambda: seen.append(settings.num_threads),)
                ),
            ]
            for thread in threads:
                thread.start()
                thread.join()
        assert seen == [8, 3]

    def test_and_of_one_task(self):
        async def one(value):
            with context(num_threads=value):
                await asyncio.sleep(0)
                return settings.num_threads

        async def all_of_them():
            return await asyncio.gather(*(one(value) for value in range(1, 6)))

        assert asyncio.run(all_of_them()) == [1, 2, 3, 4, 5]
        assert settings.num_threads == 8


class TestSettingsObject:
    def test_by_item_and_by_attribute(self):
        settings.num_threads = 3
        assert settings["num_threads"] == 3
        settings["num_threads"] = 4
        assert settings.get("num_threads") == 4
        assert settings.get("nothing", "x") == "x"
        assert "num_threads" in settings
        assert "nothing" not in settings
        with pytest.raises(KeyError):
            settings["nothing"]
        with pytest.raises(ConfigurationError):
            settings.num_thread = 1
        assert settings.copy()["num_threads"] == settings.config["num_threads"] == 4
        assert set(settings.keys()) == set(settings.copy())
        assert "num_threads=4" in repr(settings)

    def test_configure_and_context_are_there_too(self):
        settings.configure(num_threads=3)
        with settings.context(num_threads=2):
            assert settings.num_threads == 2
        assert settings.num_threads == 3


class TestTrace:
    def test_of_a_block(self):
        lm, predict = ScriptedLM(lambda request: {"answer": "A"}), ds.Predict("question -> answer")
        with context(lm=lm):
            with context(trace=[]):
                made = predict(question="q")
                asyncio.run(predict.acall(question="r"))
                trace = settings.trace
            predict(question="s")
        assert [(part, inputs) for part, inputs, _ in trace] == [
            (predict, {"question": "q"}),
            (predict, {"question": "r"}),
        ]
        assert trace[0][2] is made
        assert settings.trace is None

    def test_of_the_whole_process(self):
        trace = []
        configure(trace=trace, lm=ScriptedLM(lambda request: {"answer": "A"}))
        ds.Predict("question -> answer")(question="q")
        configure(trace=None)
        ds.Predict("question -> answer")(question="q")
        assert len(trace) == 1

    def test_it_is_bounded(self):
        with context(lm=ScriptedLM(lambda request: {"answer": "A"}), trace=[], max_trace_size=2):
            for number in range(4):
                ds.Predict("question -> answer")(question=f"{number}")
            assert [inputs["question"] for _, inputs, _ in settings.trace] == ["2", "3"]

    def test_rows_in_parallel_share_it(self):
        predict = ds.Predict("question -> answer")
        with context(lm=ScriptedLM(lambda request: {"answer": "A"}), trace=[]):
            predict.batch([ds.Example(question=f"{n}").with_inputs("question") for n in range(6)])
            assert len(settings.trace) == 6


@pytest.mark.parametrize("lm", [3, "nobody/knows-it", "no-provider", object()])
@pytest.mark.parametrize("how", [ds.configure, lambda **values: ds.context(**values).__enter__()])
def test_what_is_no_model_is_refused_where_it_is_set(how, lm):
    with pytest.raises(ConfigurationError, match=r"no model|provider"):
        how(lm=lm)
    assert settings.lm is None
