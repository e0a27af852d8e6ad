"""Callbacks: DSPy's handlers, their arguments and their order."""

import asyncio
import logging

import pytest

import dspy_stream as ds
from dspy_stream import events
from dspy_stream.callbacks import BaseCallback
from dspy_stream.events import ACTIVE_CALL_ID, Callbacks, calling
from dspy_stream.lm import LM, LocalLM
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.program.types import Tool

KINDS = (
    *("module", "lm", "adapter_format", "adapter_parse", "tool", "evaluate", "compile"),
    *("interpreter_startup", "interpreter_execute", "interpreter_tool_call", "interpreter_shutdown"),
)


@pytest.fixture(autouse=True)
def nobody_listens(monkeypatch):
    for name in ("_subscribers", "active", "_armed"):
        monkeypatch.setattr(events, name, getattr(events, name))
    events._keep([each for each in events._subscribers if each.always_told])
    yield
    ds.configure(callbacks=[])


class Recorder(BaseCallback):
    """Notes every call; the handlers are made below."""

    def __init__(self):
        self.calls = []


def _handlers(kind):
    def start(self, call_id, instance, inputs):
        self.calls.append((f"{kind}_start", call_id, ACTIVE_CALL_ID.get(), type(instance).__name__, inputs))

    def end(self, call_id, outputs, exception=None):
        self.calls.append((f"{kind}_end", call_id, ACTIVE_CALL_ID.get(), outputs, exception))

    setattr(Recorder, f"on_{kind}_start", start)
    setattr(Recorder, f"on_{kind}_end", end)


for _kind in KINDS:
    _handlers(_kind)


def names(recorder):
    return [call[0] for call in recorder.calls]


def model():
    return ScriptedLM(lambda request: {"reasoning": "r", "answer": "A"})


ONE_CALL = [
    *("module_start", "adapter_format_start", "adapter_format_end", "lm_start", "lm_end"),
    *("adapter_parse_start", "adapter_parse_end", "module_end"),
]


def test_the_handlers_have_dspys_names():
    assert {name for name in vars(BaseCallback) if name.startswith("on_")} == {
        f"on_{kind}_{end}" for kind in KINDS for end in ("start", "end")
    }


class TestOrderAndArguments:
    def test_of_a_predictor(self):
        recorder = Recorder()
        with ds.context(lm=model(), callbacks=[recorder]):
            ds.Predict("question -> answer")(question="q")
        assert names(recorder) == ONE_CALL
        by_name = {call[0]: call for call in recorder.calls}
        assert by_name["module_start"][4] == {"args": (), "kwargs": {"question": "q"}}
        assert set(by_name["adapter_format_start"][4]) == {"signature", "demos", "inputs"}
        assert by_name["adapter_format_start"][4]["inputs"] == {"question": "q"}
        assert set(by_name["lm_start"][4]) == {"prompt", "messages", "kwargs"}
        assert by_name["adapter_format_end"][3] == by_name["lm_start"][4]["messages"]
        assert set(by_name["adapter_parse_start"][4]) == {"signature", "completion"}
        assert by_name["adapter_parse_start"][4]["completion"] == by_name["lm_end"][3][0]
        assert by_name["adapter_parse_end"][3] == {"answer": "A"}
        assert by_name["module_end"][3].answer == "A"
        assert all(call[4] is None for call in recorder.calls if call[0].endswith("_end"))

    def test_parents(self):
        recorder = Recorder()
        with ds.context(lm=model(), callbacks=[recorder]):
            ds.ChainOfThought("question -> answer")(question="q")
        starts = [call for call in recorder.calls if call[0].endswith("_start")]
        outer, inner = starts[0][1], starts[1][1]
        assert starts[0][2] is None
        assert starts[1][2] == outer
        assert {call[2] for call in starts[2:]} == {inner}
        ends = {call[1]: call[2] for call in recorder.calls if call[0].endswith("_end")}
        assert all(ends[call[1]] == call[2] for call in starts)

    def test_from_a_coroutine(self):
        recorder = Recorder()
        with ds.context(lm=model(), callbacks=[recorder]):
            asyncio.run(ds.Predict("question -> answer").acall(question="q"))
        assert names(recorder) == ONE_CALL

    def test_a_tool(self):
        recorder = Recorder()
        with ds.context(callbacks=[recorder]):
            Tool(lambda x: x + 1, name="add", arg_types={"x": int})(x=3)
        assert [(call[0], call[3]) for call in recorder.calls] == [("tool_start", "Tool"), ("tool_end", 4)]
        assert recorder.calls[0][4] == {"kwargs": {"x": 3}}

    @pytest.mark.parametrize("kind", ["evaluate", "compile"])
    def test_the_others_are_told_by_whoever_does_them(self, kind):
        recorder = Recorder()
        with ds.context(callbacks=[recorder]), calling(kind, self, {"devset": [1]}) as call:
            call.outputs = 0.5
        assert names(recorder) == [f"{kind}_start", f"{kind}_end"]
        assert recorder.calls[1][3] == 0.5

    def test_a_failure(self):
        recorder = Recorder()
        with ds.context(callbacks=[recorder], lm=model()), pytest.raises(ValueError, match="Positional"):
            ds.Predict("question -> answer")("q")
        assert names(recorder) == ["module_start", "module_end"]
        assert recorder.calls[0][4] == {"args": ("q",), "kwargs": {}}
        assert isinstance(recorder.calls[1][4], ValueError)

    def test_in_a_flow_for_every_row(self):
        recorder = Recorder()
        ds.configure(callbacks=[recorder])
        rows = [{"question": f"q{n}"} for n in range(4)]
        ds.Stream.from_iterable(rows).through(ds.Predict("question -> answer")).to_list(lm=model())
        assert sorted(names(recorder)) == sorted(ONE_CALL * 4)


class TestWhoIsTold:
    def test_of_the_process_of_a_block_and_of_one_instance(self):
        common, local, own, lms = (Recorder() for _ in range(4))
        lm = ScriptedLM(lambda request: {"answer": "A"}, callbacks=[lms])
        predict = ds.Predict("question -> answer", callbacks=[own])
        ds.configure(callbacks=[common])
        predict(question="q", lm=lm)
        with ds.context(callbacks=[local]):
            predict(question="q", lm=lm)
        assert names(common) == names(local) == ONE_CALL
        assert names(own) == ["module_start", "module_end"] * 2
        assert names(lms) == ["lm_start", "lm_end"] * 2

    def test_a_callback_that_is_added_later(self):
        recorder = Recorder()
        predict = ds.Predict("question -> answer")
        assert predict.callbacks == []
        predict.callbacks.append(recorder)
        predict(question="q", lm=model())
        assert names(recorder) == ["module_start", "module_end"]
        predict.callbacks = []
        predict(question="q", lm=model())
        assert len(recorder.calls) == 2

    def test_a_module_whose_init_calls_no_super(self):
        class Bare(ds.Module):
            def __init__(self):
                self.x = 1

            def forward(self):
                return 1

        recorder, bare = Recorder(), Bare()
        bare.callbacks += [recorder]
        assert bare() == 1
        assert names(recorder) == ["module_start", "module_end"]

    def test_a_module_that_passes_them_on(self):
        class Some(ds.Module):
            def __init__(self, callbacks=None):
                super().__init__(callbacks=callbacks)

            def forward(self):
                return 1

        recorder = Recorder()
        Some([recorder])()
        assert names(recorder) == ["module_start", "module_end"]

    def test_copies_have_none_of_their_own(self):
        predict = ds.Predict("question -> answer", callbacks=[Recorder()])
        assert predict.deepcopy().callbacks == []
        cot = ds.ChainOfThought("question -> answer")
        cot.callbacks.append(Recorder())
        assert cot.deepcopy().callbacks == []

    def test_equal_models_with_other_callbacks_are_told_apart(self):
        first, second = Recorder(), Recorder()
        predict = ds.Predict("question -> answer")
        with ds.context(lm=LocalLM(callbacks=[first])):
            predict(question="q", demos=[{"question": "q", "answer": "a"}])
            predict.demos = [{"question": "q", "answer": "a"}]
            predict(question="q")
            predict(question="q", lm=LocalLM(callbacks=[second]))
            with ds.context(lm=LocalLM(callbacks=[second])):
                predict(question="q")
        assert len(names(first)) == 4
        assert len(names(second)) == 4

    def test_a_model_keeps_its_callbacks_when_it_is_copied(self):
        recorder = Recorder()
        lm = LM("openai/gpt-4o-mini", callbacks=[recorder])
        assert lm.copy(temperature=1.0).callbacks == [recorder]
        assert lm == lm.copy()
        assert "callbacks" not in lm.dump_state()
        assert "callbacks" not in lm.options

    def test_any_object_with_a_handler_will_do(self):
        class Some:
            seen = 0

            def on_lm_start(self, call_id, instance, inputs):
                self.seen += 1

        some = Some()
        with ds.context(callbacks=[some], lm=model()):
            ds.Predict("question -> answer")(question="q")
        assert some.seen == 1

    def test_the_list_of_settings_takes_more(self):
        recorder = Recorder()
        ds.settings.callbacks.append(recorder)
        Tool(lambda: 1, name="one")()
        assert names(recorder) == ["tool_start", "tool_end"]


def test_what_a_callback_raises_is_logged_and_goes_no_further(caplog):
    class Breaks(BaseCallback):
        def on_lm_start(self, call_id, instance, inputs):
            raise RuntimeError("nobody home")

        def on_module_end(self, call_id, outputs, exception=None):
            raise RuntimeError("nobody home")

    recorder = Recorder()
    with (
        ds.context(callbacks=[Breaks(), recorder], lm=model()),
        caplog.at_level(logging.WARNING, "dspy_stream"),
    ):
        assert ds.Predict("question -> answer")(question="q").answer == "A"
    assert names(recorder) == ONE_CALL
    assert [record.message for record in caplog.records] == [
        "Breaks.on_lm_start failed: RuntimeError: nobody home",
        "Breaks.on_module_end failed: RuntimeError: nobody home",
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it.append(1),
        lambda it: it.extend([1]),
        lambda it: it.insert(0, 1),
        lambda it: it.__iadd__([1]),
        lambda it: it.__setitem__(slice(0, 0), [1]),
    ],
)
def test_every_way_to_add_one_is_noticed(change):
    made = Callbacks()
    assert not events.active
    change(made)
    assert made == [1]
    assert events.active
