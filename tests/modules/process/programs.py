"""Programs that worker processes make and run: imported by the tests, and by every worker."""

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextvars import copy_context
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

import dspy_stream as ds
from dspy_stream.modules.part import as_part

HERE = Path(__file__)


class Says(ds.Module):
    """Does what its row says."""

    def forward(self, n, do="", seconds=0.0):
        if do == "exit":
            os._exit(3)
        if do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "segfault":
            ctypes.string_at(0)
        if do == "leave":
            sys.exit(5)
        if do == "memory":
            resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
            bytearray(8 << 30)
        if do == "stop":  # as every process of a service is told to
            os.kill(os.getpid(), signal.SIGTERM)
        if do == "stop what it starts":
            forked = os.fork()
            if forked == 0:
                time.sleep(60)
                os._exit(0)
            os.kill(forked, signal.SIGTERM)
            started = subprocess.Popen(["sleep", "60"])
            started.terminate()
            return ds.Prediction(m=n * 2, ends=[os.waitpid(forked, 0)[1], started.wait(30)])
        if do == "hang":
            time.sleep(600)
        if do == "hold":  # the interpreter itself, so that no thread of it can do anything
            ctypes.PyDLL(None).sleep(600)
        if do == "fork":  # and both go on
            os.fork()
        if do == "fork and die" and os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        if do == "fork and die":
            os._exit(7)
        if do == "write":
            os.write(1, b"\0\0\0\1\0\0\0\0{" * 100)
            sys.__stdout__.write("printed" * 10_000)
        if do == "close":
            os.closerange(0, 256)
        if do == "big":
            return ds.Prediction(m=n * 2, text="x" * (50 << 20), data=b"\xff" * (5 << 20))
        if do == "thread":
            threading.Thread(target=os._exit, args=(8,)).start()
            time.sleep(600)
        if do == "address":
            return ds.Prediction(m=[{"thing": 1}], thing={"of": [object()]})
        if do == "raise":
            raise KeyError(n)
        if do == "own":
            raise Own(f"row {n}")
        if do == "odd":
            raise Odd(n, "b")
        if do == "first":  # dies in the first worker that it meets
            path = Path(os.environ["TEST_FOLDER"]) / f"died-{n}"
            if not path.exists():
                path.touch()
                os._exit(4)
        print(f"row {n} is printed")  # goes to standard error, and not between the frames
        time.sleep(seconds)
        if do == "scheduled":
            return ds.Prediction(m=os.sched_getscheduler(0))
        return ds.Prediction(m=n * 2, pid=os.getpid(), key=os.environ.get("OPENAI_API_KEY", "none"))


class Own(Exception):
    """An exception of the user's own."""


class Odd(Exception):
    """With a constructor of its own, and attributes that only it knows."""

    def __init__(self, n, other):
        super().__init__(f"row {n}")
        self.where, self.original = n, other


class Asks(ds.Module):
    """Asks the model, and may die after it."""

    def __init__(self):
        self.ask = ds.Predict("question -> answer: list[str]")

    def forward(self, question, die=False):
        answer = self.ask(question=question).answer
        path = Path(os.environ.get("TEST_FOLDER", ".")) / "dead"
        if die and not path.exists():
            path.touch()
            os._exit(1)
        return ds.Prediction(answer=answer)


class AtOnce(ds.Module):
    """Two questions at the same time."""

    def __init__(self):
        self.one = ds.Predict("a -> b")
        self.two = ds.Predict("a -> c")

    async def aforward(self, a):
        one, two = await asyncio.gather(self.one.acall(a=a), self.two.acall(a=a))
        return ds.Prediction(b=one.b, c=two.c)


class Forgives(ds.Module):
    """Catches what the model's call raises."""

    def __init__(self):
        self.ask = ds.Predict("question -> answer")

    def forward(self, question):
        try:
            return self.ask(question=question)
        except ds.LMError as error:
            return ds.Prediction(answer=f"{type(error).__name__} {error.status}")


class Private(ds.Module):
    """Names a model by itself."""

    def forward(self, question):
        return ds.Predict("question -> answer")(question=question, lm="openai/gpt-4o-mini")


class Needs(ds.Module):
    """Takes an argument, so that a worker cannot guess how it was made."""

    def __init__(self, factor):
        self.factor = factor

    def forward(self, n):
        return ds.Prediction(m=n * self.factor)


class Times(ds.Module):
    """May take arguments, and does not call them as others do."""

    def __init__(this, factor=2, *more, callbacks=None, **named):
        this.factor = factor

    def forward(this, n):
        return ds.Prediction(m=n * this.factor)


def three_times():
    return Needs(3)


def no_module():
    return 7


def raises():
    raise ValueError("no database here")


def exits():
    os._exit(9)


def other_program():
    return Asks()


def double(n):
    """A plain function as a part."""
    return {"m": n * 2}


def not_one(n):
    if n == 1:
        raise ValueError(n)
    return {"m": n * 2}


class Skips(ds.Module):
    """Holds a part that chooses what becomes of its failures."""

    def __init__(self):
        self.inner = ds.Program(only=as_part(not_one).using(on_error="skip"))

    def forward(self, n):
        return self.inner(n=n)


class Gone(Exception):
    """The resource has broken."""


class Holds(ds.Module):
    """Holds a file, in each worker one of its own, and writes what happens to a log."""

    failures = (Gone,)

    def note(self, what):
        with open(os.environ["TEST_FOLDER"] + "/log", "a") as log:
            log.write(f"{what} {os.getpid()}\n")

    def open(self):
        self.note("open")
        if Path(os.environ["TEST_FOLDER"], "refuse").exists():
            raise ConnectionRefusedError("refused")
        self.resource = "held"

    def close(self):
        self.note("close")

    def forward(self, n, do=""):
        assert self.resource == "held"
        done = Path(os.environ["TEST_FOLDER"]) / f"done-{n}"
        if do and not done.exists():
            done.touch()
            if do == "gone":
                raise Gone(str(n))
            os._exit(6)
        return ds.Prediction(m=n * 2)


class HoldsInside(ds.Module):
    """Has one that holds a file in it."""

    def __init__(self):
        self.holds = Holds()

    def forward(self, n):
        return self.holds(n=n)


class BreaksInside(ds.Module):
    """Has one in it that holds a file which breaks: once, or for every row."""

    def __init__(self):
        self.holds = Holds()

    def forward(self, n, do=""):
        if do == "dead":
            Path(os.environ["TEST_FOLDER"], f"done-{n}").unlink(missing_ok=True)
        return self.holds(n=n, do="gone" if do else "")


class Stops(ds.Module):
    """Raises what concerns the flow."""

    def forward(self, n):
        raise StopsFlow(f"row {n}") if n == 1 else ds.BudgetExceeded(f"row {n}")


class StopsFlow(ds.errors.OutputError):
    """Of the user's own, of a class that concerns the flow."""

    def __init__(self, what):
        super().__init__(f"no place for {what}")


class NeverOpen(ds.Module):
    """Its resource never comes."""

    open_timeout = 0.5

    def open(self):
        time.sleep(600)

    def close(self):
        """Nothing was opened."""

    def forward(self, n):
        return ds.Prediction(m=n)


class NeverMade(ds.Module):
    """Its making in a worker never ends."""

    open_timeout = 0.5

    def forward(self, n):
        return ds.Prediction(m=n)


def never_makes():
    time.sleep(600)


def holds_the_interpreter():
    ctypes.PyDLL(None).sleep(600)


class Checked(Holds):
    """Knows how it is, which only an open one can tell; it is asked of one that a worker has opened."""

    failures = ()

    def healthy(self):
        if self.resource == "broken":
            raise ConnectionResetError("gone")
        return self.resource == "held"

    def forward(self, n, do=""):
        done = Path(os.environ["TEST_FOLDER"]) / f"done-{n}"
        if do == "bad":
            raise ValueError(f"row {n}")
        if do == "break" and not done.exists():
            done.touch()
            self.resource = "broken"
            raise ValueError("read failed")
        return ds.Prediction(m=n * 2)


class DiesOpening(Holds):
    """Ends its worker process when it is opened."""

    def open(self):
        with (Path(os.environ["TEST_FOLDER"]) / "opened").open("a") as log:
            log.write("x")
        os._exit(9)


class Judges(ds.Module):
    """Two predictors, of which the second is not to understand its answer."""

    def __init__(self):
        self.say = ds.Predict("n: int -> word")
        self.judge = ds.ChainOfThought("word -> right: bool")

    def forward(self, n):
        return self.judge(word=self.say(n=n).word)


class Mute(Holds):
    """Does not say how it is, nor closes."""

    failures = ()
    close_timeout = 0.5

    def healthy(self):
        time.sleep(600)

    close = healthy

    def forward(self, n):
        done = Path(os.environ["TEST_FOLDER"]) / f"done-{n}"
        if not done.exists():
            done.touch()
            raise ValueError("read failed")
        return ds.Prediction(m=n * 2)


class Colour(Enum):
    RED = 1
    BLUE = "b"


@dataclass
class Spot:
    x: int
    y: Any = None


class Pair(NamedTuple):
    left: Any
    right: Any


class Item(BaseModel):
    name: str
    spots: list[Spot] = []
    colour: Colour | None = None
    more: Any = None


class Typed(ds.Signature):
    """Its outputs have types; what the code gives may be something else."""

    value: Any = ds.InputField()
    item: Item = ds.OutputField()
    colour: Literal["red", "blue"] = ds.OutputField()
    spots: dict[str, list[Spot]] = ds.OutputField()
    n: int = ds.OutputField()


class Gives(ds.Module):
    """Gives what it gets, under names that have types."""

    def __init__(self):
        self.ask = ds.Predict(Typed)

    def forward(self, value):
        return ds.Prediction(item=value, colour=value, spots=[value], n={"in": value})


class Hinted(ds.Module):
    """Asks once, and says which settings hold where it runs."""

    def __init__(self):
        self.ask = ds.Predict("question -> answer")

    def forward(self, question):
        made = self.ask(question=question)
        used = made.get_lm_usage() or {}
        return ds.Prediction(
            answer=made.answer,
            tracked=ds.settings.track_usage,
            threads=ds.settings.num_threads,
            calls=len(used),
        )


class Settles(ds.Module):
    """Says what the settings are where it runs, among them those of the program's own."""

    def forward(self, n):
        known = ds.settings
        return ds.Prediction(
            mine=known.get("mine", "none"),
            table=known.get("table", "none"),
            size=known.max_trace_size,
            adapter=type(known.adapter).__name__,
        )


_left = []


class Leaves(ds.Module):
    """Leaves a thread behind, which asks when the next row runs."""

    def __init__(self):
        self.ask = ds.Predict("question -> answer")

    def forward(self, question):
        if question == "first":
            go = threading.Event()
            heard = []

            def later():
                go.wait()
                try:
                    heard.append(self.ask(question="left behind").answer)
                except Exception as error:  # noqa: BLE001 - the row that comes next tells it
                    heard.append(f"{type(error).__name__}: {error}")

            thread = threading.Thread(target=copy_context().run, args=(later,))
            thread.start()
            _left.append((go, thread, heard))
            return ds.Prediction(answer="")
        go, thread, heard = _left.pop()
        go.set()
        thread.join()
        return ds.Prediction(answer=heard[0])


class Threaded(ds.Module):
    """Asks from a thread of its own, which knows nothing of the row."""

    def __init__(self):
        self.ask = ds.Predict("question -> answer")

    def forward(self, question):
        heard = []
        thread = threading.Thread(target=lambda: heard.append(self.ask(question=question).answer))
        thread.start()
        thread.join()
        return ds.Prediction(answer=heard[0])


class Raises(ds.Module):
    """Raises what no JSON holds."""

    def forward(self, what):
        raise {
            "huge": KeyError(10**5000),
            "large": ValueError(2**70, -(2**64)),
            "half": ValueError("half \ud800 of a pair"),
            "none": ValueError(float("nan")),
            "unsaid": Unsaid(),
        }[what]


class Unsaid(Exception):
    """Cannot be shown."""

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__
