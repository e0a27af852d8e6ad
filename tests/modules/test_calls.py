"""Methods that callbacks hear of."""

import asyncio

import pytest

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
