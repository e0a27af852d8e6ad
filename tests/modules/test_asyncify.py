"""asyncify and syncify."""

import asyncio
import threading

import pytest

import dspy_stream as ds
from dspy_stream.errors import ConfigurationError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules.asyncify import asyncify, syncify


class Later(ds.Module):
    def __init__(self):
        super().__init__()
        self.predict = ds.Predict("question -> answer")

    async def aforward(self, question):
        return await self.predict.acall(question=question)


def model():
    return ScriptedLM(lambda request: {"answer": "A"})


class TestAsyncify:
    def test_it_runs_elsewhere_under_the_callers_settings(self):
        threads = []

        class Blocks(ds.Module):
            def __init__(self):
                self.predict = ds.Predict("question -> answer")

            def forward(self, question):
                threads.append(threading.current_thread())
                return self.predict(question=question)

        async def work():
            with ds.context(lm=model()):
                return await asyncify(Blocks())(question="q")

        assert asyncio.run(work()).answer == "A"
        assert threads[0] is not threading.main_thread()

    def test_so_many_at_a_time_and_no_more(self):
        lock, now, most = threading.Lock(), 0, 0
        meet = threading.Barrier(2, timeout=20)

        def work(_):
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            meet.wait()
            with lock:
                now -= 1

        async def all_of_them():
            with ds.context(async_max_workers=2):
                await asyncio.gather(*(asyncify(work)(number) for number in range(6)))

        asyncio.run(all_of_them())
        assert most == 2

    def test_errors_come_back(self):
        def fails():
            raise KeyError("x")

        with pytest.raises(KeyError, match="x"):
            asyncio.run(asyncify(fails)())

    @pytest.mark.parametrize("size", [0, -1, "two"])
    def test_a_wrong_number_of_workers(self, size):
        async def work():
            with ds.context(async_max_workers=size):
                await asyncify(print)()

        with pytest.raises(ConfigurationError, match="async_max_workers"):
            asyncio.run(work())


class TestSyncify:
    def test_in_place(self):
        later = Later()
        assert syncify(later) is later
        with ds.context(lm=model()):
            assert later(question="q").answer == later.forward(question="q").answer == "A"

    def test_around_it(self):
        later = Later()
        wrapped = syncify(later, in_place=False)
        assert wrapped is not later
        with ds.context(lm=model()):
            assert wrapped(question="q").answer == "A"
            assert asyncio.run(wrapped.acall(question="q")).answer == "A"
        assert [name for name, _ in wrapped.named_predictors()] == ["program.predict"]

    @pytest.mark.parametrize("in_place", [True, False])
    @pytest.mark.parametrize("kind", ["predict", "thought", "forward", "aforward", "both", "beside"])
    def test_every_module_answers_as_before_by_every_way(self, kind, in_place):
        def made():
            again = ds.syncify(_made(kind), in_place=in_place)
            return ds.syncify(again)

        with ds.context(lm=_answers()):
            said = [made()(question="q"), made().forward(question="q"), Around(made())(question="q")]
            said += [asyncio.run(made().acall(question="q")), asyncio.run(made().aforward(question="q"))]
            said += [ds.Program(part=made())(question="q"), asyncio.run(ds.asyncify(made())(question="q"))]
            for module in (made(), Around(made())):
                said += ds.Stream.read([{"question": "q"}], name="synced").through(module).to_list()
        assert [one["answer"] for one in said] == ["A"] * 9


class Around(ds.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, question):
        return self.inner(question=question)


class Plainly(Later):
    aforward = ds.Module.aforward

    def forward(self, question):
        return self.predict(question=question)


class Both(Later):
    def forward(self, question):
        return self.predict(question=question)


class Beside(ds.Predict):
    async def aforward(self, **kwargs):
        return await super().aforward(**kwargs)


def _made(kind):
    if kind in ("predict", "thought", "beside"):
        return {"predict": ds.Predict, "thought": ds.ChainOfThought, "beside": Beside}[kind](
            "question -> answer"
        )
    return {"forward": Plainly, "aforward": Later, "both": Both}[kind]()


def _answers():
    return ScriptedLM(lambda request: {"reasoning": "r", "answer": "A"})
