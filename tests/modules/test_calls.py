"""Methods that callbacks hear of."""

import asyncio

import pytest

import dspy_stream as ds
from dspy_stream.callbacks import BaseCallback
from dspy_stream.configuration import context
from dspy_stream.lm.dummy import DummyLM
from dspy_stream.modules import Module
from dspy_stream.modules.calls import with_callbacks


class Ears(BaseCallback):
    def __init__(self):
        self.heard = []

    def on_module_start(self, call_id, instance, inputs):
        self.heard.append(inputs)

    def on_module_end(self, call_id, outputs, exception=None):
        self.heard.append(outputs if exception is None else repr(exception))

    def on_lm_start(self, call_id, instance, inputs):
        self.heard.append("asks")


class Adding(Module):
    @with_callbacks
    def forward(self, x, y=2):
        return x + y

    @with_callbacks
    async def later(self, x):
        return x


def test_a_method_called_directly_is_heard_with_its_arguments_by_name():
    ears = Ears()
    assert Adding(callbacks=[ears]).forward(1) == 3
    assert ears.heard == [{"x": 1, "y": 2}, 3]
    assert Adding().forward(1) == 3
    assert len(ears.heard) == 2


def test_so_is_its_failure_and_a_coroutine():
    ears = Ears()
    with context(callbacks=[ears]):
        with pytest.raises(TypeError):
            Adding().forward("a")
        assert asyncio.run(Adding().later(4)) == 4
    assert ears.heard[0] == {"x": "a", "y": 2}
    assert ears.heard[1].startswith("TypeError")
    assert ears.heard[2:] == [{"x": 4}, 4]


def test_a_model_is_heard_once():
    class Loud(DummyLM):
        @with_callbacks
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    ears = Ears()
    with context(callbacks=[ears]):
        Loud([{"a": "1"}])("hello")
    assert ears.heard == ["asks"]


class Plain(ds.Module):
    def __init__(self):
        super().__init__()
        self.first = ds.Predict("q -> a")
        self.second = ds.Predict("q -> b")

    def forward(self, q):
        return ds.Prediction(a=self.first(q=q).a, b=self.second(q=q).b)


class Loudly(Plain):
    def __call__(self, **kwargs):
        made = super().__call__(q=kwargs["q"].upper())
        return ds.Prediction(**made, extra=1)


class Renamed(Plain):
    def __call__(self, text):
        return super().__call__(q=text.upper())


class Later(Loudly):
    forward = ds.Module.forward

    async def aforward(self, q):
        return ds.Prediction(a=(await self.first.acall(q=q)).a)


class Opened(Loudly):
    def open(self):
        self.opened = True

    def close(self):
        self.opened = False

    def forward(self, q):
        assert self.opened
        return super().forward(q)


class Shouting(ds.Predict):
    def __call__(self, **kwargs):
        return super().__call__(q=kwargs["q"].upper())


class Joined(ds.Program):
    def __call__(self, **kwargs):
        return super().__call__(q=kwargs["q"].upper())


class Holding(ds.Module):
    def __init__(self, inner, name):
        super().__init__()
        self.inner, self.name = inner, name

    def forward(self, **fields):
        return self.inner(**{self.name: fields[self.name]})


def echoes():
    return ds.ScriptedLM(lambda request: dict.fromkeys("ab", request.messages[-1].content.split("\n")[1]))


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize("split", [None, False, True])
@pytest.mark.parametrize(
    "made",
    [Loudly, Renamed, Later, Opened, lambda: Shouting("q -> a"), lambda: Joined(p=ds.Predict("q -> a"))],
    ids=["own", "renamed", "async", "opened", "predict", "program"],
)
def test_a_call_of_its_own_is_what_a_step_and_a_part_do(made, split, listens):
    name = "text" if isinstance(made(), Renamed) else "q"
    with context(lm=echoes(), callbacks=[Ears()] if listens else []):
        script = dict(Holding(made(), name)(**{name: "abc"}))
        assert script["a"] == "ABC"
        if not hasattr(made(), "open"):
            assert dict(made()(**{name: "abc"})) == script
        assert dict(ds.Program(part=made())(**{name: "abc"})) == script
        for module in (made(), ds.Program(part=made()), Holding(made(), name)):
            flow = ds.Stream.read([{name: "abc"}], name="own").through(module, split=split)
            assert [dict(row) for row in flow.to_list()] == [{name: "abc", **script}]
        recorded = ds.Recorded(made())
        assert recorded(**{name: "abc"})["a"] == "ABC"


def test_a_program_with_a_call_of_its_own_is_not_traced_and_says_so():
    assert "Loudly has a __call__ of its own" in _explained(Loudly(), None)
    assert "runs whole: " in _explained(Loudly(), True)
    assert "a way of its own joins its parts" in _explained(Joined(p=ds.Predict("q -> a")), True)


def _explained(module, split):
    return ds.Stream.read([{"q": "abc"}], name="own").through(module, split=split).write([]).explain()
