"""PythonInterpreter as a session: results, variables, tools, errors, limits, ends; code of every kind."""

import asyncio
import gc
import os
import threading
import time
from pathlib import Path

import pytest

from dspy_stream.callbacks import BaseCallback
from dspy_stream.errors import BudgetExceeded, ConfigurationError
from dspy_stream.interpreters import (
    CodeExecutionError,
    CodeInterpreter,
    CodeInterpreterError,
    FinalOutput,
    PythonInterpreter,
    SandboxLimits,
)
from dspy_stream.program.types import Tool

QUICK = SandboxLimits(seconds=0.3, grace=0.3)


@pytest.fixture
def python():
    with PythonInterpreter() as made:
        yield made


def runs(process):
    """False where no process has that id, or only what nobody has asked about yet."""
    stat = Path(f"/proc/{process}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return stat.read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
        except OSError:
            return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def gone(process):
    """Wait for its end."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not runs(process):
            return True
        threading.Event().wait(0.01)
    return False


class TestResults:
    @pytest.mark.parametrize(
        ("code", "made"),
        [
            ("print('a'); print('b')", "a\nb\n"),
            ("6 * 7", 42),
            ("x = 1", None),
            ("", None),
            ("# nothing", None),
            ("print('a')\n1 + 1", "a\n2"),
            ("{'a': (1, None), 2: 1.5}", {"a": [1, None], "2": 1.5}),
            ("object", "<class 'object'>"),
            ("'Gr\\u00fc\\u00dfe \\N{SNOWMAN} \\U0001f600'", "Grüße ☃ 😀"),
            ("print('ключ ☃')", "ключ ☃\n"),
            ("import sys; print('e', file=sys.stderr)", "e\n"),
            ("float('inf')", float("inf")),
            ("2 ** 100", 2**100),
            ("True", True),
        ],
    )
    def test_what_was_printed_or_the_last_value(self, python, code, made):
        found = python.execute(code)
        assert found == made
        assert type(found) is type(made)

    def test_half_a_character_is_no_end(self, python):
        assert python.execute("'\\ud800'") == "\ud800"
        assert python.execute("x", {"x": "\ud801"}) == "\ud801"

    def test_it_is_an_interpreter(self, python):
        assert isinstance(python, CodeInterpreter)
        assert python("1 + 1") == 2

    def test_of_much_text_the_beginning_and_the_end_are_kept(self):
        with PythonInterpreter(limits=SandboxLimits(output_chars=1000)) as python:
            made = python.execute("print('a' * 10_000_000); print('end')")
            assert made == "a" * 500 + "\n... (9,999,005 characters left out) ...\n" + "a" * 495 + "\nend\n"
            many = python.execute("for i in range(100_000): print(i)")
            assert many.startswith("0\n1\n")
            assert many.endswith("99998\n99999\n")
            assert len(many) < 1100

    def test_more_than_a_message_may_hold_is_an_end(self):
        with PythonInterpreter(limits=SandboxLimits(message_bytes=100_000)) as python:
            assert python.execute("'a' * 50_000") == "a" * 50_000
            with pytest.raises(CodeInterpreterError, match="more than 100,000 bytes") as raised:
                python.execute("'a' * 10_000_000")
        assert not isinstance(raised.value, CodeExecutionError)


class TestSubmit:
    @pytest.mark.parametrize(
        ("fields", "code", "made"),
        [
            (None, "SUBMIT(4)", {"output": 4}),
            (None, "SUBMIT({'a': 1})", {"output": {"a": 1}}),
            (None, "SUBMIT(a=1, b={2, 2})", {"a": 1, "b": [2]}),
            (["a"], "SUBMIT(1)", {"a": 1}),
            (["a", "b"], "SUBMIT(1, 2)", {"a": 1, "b": 2}),
            (["a", "b"], "SUBMIT(1, b=2)", {"a": 1, "b": 2}),
            (["a", "b"], "SUBMIT({'b': 2, 'a': 1})", {"a": 1, "b": 2}),
        ],
    )
    def test_it_takes_values_by_place_by_name_or_as_one_dict(self, fields, code, made):
        names = fields and [{"name": name} for name in fields]
        with PythonInterpreter(output_fields=names) as python:
            assert python.execute(f"print('x'); {code}; print('never')") == FinalOutput(made)

    @pytest.mark.parametrize("code", ["SUBMIT(1, 2, 3)", "SUBMIT(1)", "SUBMIT(1, c=2)", "SUBMIT(1, a=2)"])
    def test_wrong_ones_are_the_codes_to_mend(self, code):
        with PythonInterpreter(output_fields=[{"name": "a"}, {"name": "b"}]) as python:
            with pytest.raises(CodeExecutionError, match="TypeError: SUBMIT"):
                python.execute(code)
            assert python.execute("SUBMIT(1, 2)") == FinalOutput({"a": 1, "b": 2})

    @pytest.mark.parametrize("catch", ["except Exception", "except BaseException", "except"])
    def test_code_that_catches_everything_has_submitted_all_the_same(self, python, catch):
        made = python.execute(f"try:\n    SUBMIT(1)\n{catch}:\n    pass")
        assert made == FinalOutput({"output": 1})


class TestVariables:
    def test_they_stay_from_one_piece_to_the_next(self, python):
        python.execute("import math\ndef area(r): return math.pi * r * r * k", {"k": 2})
        assert python.execute("round(area(1), 3)") == 6.283
        assert python.execute("print(k)", {"k": 3}) == "3\n"

    def test_what_was_given_is_there_again(self, python):
        text = "words " * 10
        assert python.execute("text = text.upper(); text[:5]", {"text": text}) == "WORDS"
        assert python.execute("text[:5]", {"text": text}) == "words"
        items = [1]
        python.execute("items.append(2)", {"items": items})
        assert python.execute("items", {"items": items}) == [1]

    def test_a_long_text_is_sent_once(self, python):
        text = "x" * 100_000
        assert len(python._message("1", {"text": text})) > 100_000
        assert len(python._message("1", {"text": text})) < 1000
        assert len(python._message("1", {"text": text + "y"})) > 100_000
        assert len(python._message("1", {"items": [text]})) > 100_000
        assert len(python._message("1", {"items": [text]})) > 100_000

    def test_ten_megabytes_go_in_and_out(self, python):
        text = "äx" * 3_300_000
        assert python.execute("len(text)", {"text": text}) == len(text)
        assert python.execute("SUBMIT(text[:5_000_000])", {"text": text}).output["output"] == text[:5_000_000]

    def test_sessions_do_not_see_each_others(self):
        with PythonInterpreter() as one, PythonInterpreter() as other:
            one.execute("secret = 1\nimport builtins\nbuiltins.leak = 1\nopen('f', 'w').write('1')")
            with pytest.raises(CodeExecutionError, match="NameError"):
                other.execute("secret")
            with pytest.raises(CodeExecutionError, match="NameError"):
                other.execute("leak")
            assert other.execute("import os; os.listdir('.')") == []
            assert one.execute("import os; os.listdir('.')") == ["f"]

    @pytest.mark.parametrize("name", ["SUBMIT", "__builtins__", "two words", "class", 1])
    def test_names_that_code_could_not_use_are_refused(self, python, name):
        with pytest.raises(CodeInterpreterError, match="cannot be the name of a variable"):
            python.execute("1", {name: 1})
        assert python.execute("1") == 1

    @pytest.mark.parametrize("value", [float("nan"), object(), lambda: 1])
    def test_values_that_json_has_not_are_refused(self, python, value):
        with pytest.raises(CodeInterpreterError, match="a variable cannot be given"):
            python.execute("1", {"x": value})
        assert python.execute("1") == 1


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "said"),
        [
            ("x = 1\n1 / 0", "line 2: 1 / 0\nZeroDivisionError: division by zero"),
            ("raise ValueError('ä')", "line 1: raise ValueError('ä')\nValueError: ä"),
            (
                "def f():\n    return y\nf()",
                "line 3: f()\nline 2, in f: return y\nNameError: name 'y' is not defined",
            ),
            ("import sys; sys.exit(3)", "line 1: import sys; sys.exit(3)\nSystemExit: 3"),
            ("print(1); 1 / 0", "1\n\nline 1: print(1); 1 / 0\nZeroDivisionError: division by zero"),
            ("input()", "line 1: input()\nEOFError: EOF when reading a line"),
        ],
    )  # fmt: skip
    def test_say_where_in_the_code_and_what(self, python, code, said):
        with pytest.raises(CodeExecutionError) as raised:
            python.execute(code)
        assert str(raised.value) == said
        assert python.execute("1 + 1") == 2

    def test_what_code_itself_has_run(self, python):
        with pytest.raises(
            CodeExecutionError, match=r"(?s)^line 1: exec\('a b'\).*SyntaxError: invalid syntax"
        ):
            python.execute("exec('a b')")

    def test_a_function_of_earlier_code_is_named_so(self, python):
        python.execute("def f(): return 1 / 0")
        with pytest.raises(CodeExecutionError, match="line 1: f\\(\\)\nline 1 of code 1, in f: def f"):
            python.execute("f()")

    @pytest.mark.parametrize("code", ["x ===", "def f(:\n  pass", "print('a", "  x", "x = '\0'"])
    def test_what_is_no_python_is_a_syntax_error(self, python, code):
        with pytest.raises(SyntaxError):
            python.execute(code)
        assert python.execute("1") == 1

    def test_deep_recursion(self, python):
        with pytest.raises(CodeExecutionError, match="RecursionError") as raised:
            python.execute("def f(n): return f(n + 1)\nf(0)")
        assert len(str(raised.value).splitlines()) < 10
        with pytest.raises(CodeInterpreterError):
            python.execute(
                "import sys; sys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)"
            )

    def test_deep_values_come_out_as_text_somewhere(self, python):
        made = python.execute("x = []\nfor _ in range(10_000): x = [x]\n1")
        assert made == 1
        with pytest.raises(CodeExecutionError):
            python.execute("x")

    def test_an_error_that_cannot_be_shown(self, python):
        with pytest.raises(CodeExecutionError, match="Sly"):
            python.execute("class Sly(Exception):\n    def __str__(self): raise Sly\nraise Sly")


class TestTools:
    def test_they_are_called_here_with_checked_arguments(self):
        where = []

        def add(a: int, b: int = 1) -> int:
            where.append(os.getpid())
            return a + b

        with PythonInterpreter(tools={"add": add}) as python:
            assert python.execute("[add(1), add(1, 2), add(b=5, a='3')]") == [2, 3, 8]
            for call, said in [
                ("add('x')", "ValueError"),
                ("add(1, 2, 3)", "takes 2 arguments, not 3"),
                ("add(1, a=2)", "twice"),
                ("add(c=1)", "no argument `c`"),
            ]:
                with pytest.raises(
                    CodeExecutionError, match=f"RuntimeError: add: ValueError.*{said}|add: {said}"
                ):
                    python.execute(call)
        assert set(where) == {os.getpid()}

    def test_failures_are_the_codes_to_handle(self):
        def broken():
            raise KeyError("no such thing")

        with PythonInterpreter(tools={"broken": broken, "odd": object}) as python:
            assert python.execute("try: broken()\nexcept RuntimeError as e: print(e)") == (
                "broken: KeyError: 'no such thing'\n"
            )
            with pytest.raises(CodeExecutionError, match="has no JSON form"):
                python.execute("odd()")
            assert python.execute("1") == 1

    def test_what_concerns_more_than_the_row_ends_it(self):
        def spends():
            raise BudgetExceeded("no more")

        with PythonInterpreter(tools={"spends": spends}) as python:
            with pytest.raises(BudgetExceeded):
                python.execute("try: spends()\nexcept BaseException: pass")
            with pytest.raises(CodeInterpreterError, match="over"):
                python.execute("1")

    def test_coroutine_functions_and_tools_of_our_own(self):
        async def later(x: int) -> int:
            await asyncio.sleep(0)
            return x + 1

        tool = Tool(lambda text: text.upper(), name="loud")
        with PythonInterpreter(tools={"later": later, "shout": tool}) as python:
            assert python.execute("(later(1), shout('a'))") == [2, "A"]

    def test_more_may_come_between_two_pieces_of_code(self, python):
        python.tools["late"] = lambda: "here"
        assert python.execute("late()") == "here"
        del python.tools["late"]
        with pytest.raises(CodeExecutionError, match="NameError"):
            python.execute("late()")

    def test_a_name_is_a_tool_or_a_variable(self):
        with PythonInterpreter(tools={"x": lambda: 1}) as python:
            with pytest.raises(CodeInterpreterError, match="'x' is a tool"):
                python.execute("1", {"x": 2})
            python.tools["a b"] = len
            with pytest.raises(CodeInterpreterError, match="cannot be the name of a tool"):
                python.execute("1")

    def test_threads_may_call_them(self):
        with PythonInterpreter(tools={"twice": lambda x: 2 * x}) as python:
            made = python.execute(
                "from concurrent.futures import ThreadPoolExecutor\n"
                "with ThreadPoolExecutor(4) as pool: made = list(pool.map(twice, range(20)))\n"
                "made"
            )
        assert made == list(range(0, 40, 2))

    def test_the_time_they_take_is_not_the_codes(self):
        turn = threading.Event()
        with PythonInterpreter(tools={"wait": lambda: turn.wait(0.8)}, limits=QUICK) as python:
            assert python.execute("wait()") is False


class TestLimits:
    def test_calling_tools_gives_no_more_time(self):
        code = "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: quick()"
        with PythonInterpreter(tools={"quick": lambda: None}, limits=QUICK) as python:
            began = time.monotonic()
            with pytest.raises(CodeInterpreterError, match=r"it did not stop 0.3 s after its 0.3 s"):
                python.execute(code)
            assert time.monotonic() - began < 20

    @pytest.mark.parametrize(
        "code",
        [
            "while True: pass",
            "import time; time.sleep(60)",
            "while True:\n try: len([])\n except Exception: pass",
        ],
    )
    def test_an_endless_loop_is_stopped_and_the_session_goes_on(self, code):
        with PythonInterpreter(limits=QUICK) as python:
            python.execute("x = 1")
            with pytest.raises(
                CodeExecutionError, match=r"TimeoutError: the code was stopped after 0.3 seconds"
            ):
                python.execute(code)
            assert python.execute("x") == 1

    @pytest.mark.parametrize(
        "code",
        [
            "while True:\n    try: sum(range(1000))\n    except BaseException: pass",
            "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass",
            "sum(range(10 ** 13))",
        ],
    )
    def test_code_that_does_not_stop_is_killed(self, code):
        with PythonInterpreter(tools={"here": lambda: None}, limits=QUICK) as python:
            began = time.monotonic()
            with pytest.raises(CodeInterpreterError, match=r"killed|over") as raised:
                python.execute(code)
            assert not isinstance(raised.value, CodeExecutionError)
            assert time.monotonic() - began < 10
            with pytest.raises(CodeInterpreterError, match="make another"):
                python.execute("1")

    def test_memory(self, python):
        for code in ("'a' * 10 ** 10", "x = []\nwhile True: x.append('a' * 10 ** 6)", "bytearray(2 ** 40)"):
            with pytest.raises(CodeExecutionError, match="MemoryError"):
                python.execute(code)
            python.execute("x = None")
        assert python.execute("1") == 1

    def test_processor_time_of_the_whole_session(self):
        with PythonInterpreter(limits=SandboxLimits(cpu_seconds=1, seconds=30)) as python:
            python.execute("x = 1")
            with pytest.raises(CodeInterpreterError, match="processor time"):
                python.execute("while True: pass")

    def test_files(self):
        limits = SandboxLimits(folder_bytes=1 << 20, file_bytes=1 << 18, open_files=20)
        with PythonInterpreter(limits=limits) as python:
            with pytest.raises(CodeExecutionError, match=r"OSError.*File too large"):
                python.execute("open('a', 'w').write('x' * (1 << 19))")
            with pytest.raises(CodeExecutionError, match=r"OSError.*No space left"):
                python.execute("for i in range(10): open(str(i), 'w').write('x' * (1 << 17))")
            with pytest.raises(CodeExecutionError, match=r"OSError.*Too many open files"):
                python.execute("x = [open('a') for _ in range(50)]")

    def test_they_are_above_zero(self):
        with pytest.raises(ConfigurationError, match="seconds must be above 0, not 0"):
            SandboxLimits(seconds=0)


class TestEnds:
    @pytest.mark.parametrize(
        ("code", "said"),
        [
            ("import os; os._exit(3)", r"its process ended \(exit code 3\)"),
            ("import os; os.abort()", r"its process ended \(signal 6\)"),
            ("import os; os.close(3)", "ended|closed"),
            ("import os; os.write(3, b'[1]\\n')", "sent what is no message"),
            ("import os; os.write(3, b'{\"call\": 1}\\n')", "sent what is no call"),
            ("import os; os.write(3, b'[' * 100_000 + b'\\n')", "sent what is no message"),
        ],
    )
    def test_a_process_that_ends_or_lies_is_told_of(self, code, said):
        python = PythonInterpreter()
        with pytest.raises(CodeInterpreterError, match=said) as raised:
            python.execute(code)
        assert not isinstance(raised.value, CodeExecutionError)
        with pytest.raises(CodeInterpreterError, match="over"):
            python.execute("1")
        python.shutdown()

    def test_after_shutdown_there_is_nothing_and_it_may_be_said_twice(self, python):
        python.start()
        python.start()
        python.shutdown()
        python.shutdown()
        for act in (python.start, lambda: python.execute("1")):
            with pytest.raises(CodeInterpreterError, match="over"):
                act()

    def test_it_starts_by_itself(self):
        python = PythonInterpreter()
        assert python.sandbox is None
        assert python.execute("1") == 1
        assert "limits" in python.sandbox.holds
        python.shutdown()

    def test_processes_end_with_their_sessions(self, monkeypatch):
        from dspy_stream.interpreters import server as servers

        python = PythonInterpreter()
        python.execute("1")
        server, number = servers._current, python._session._number
        ended = python._session._ended
        assert number in server._ends
        del python
        gc.collect()  # forgotten without a word
        deadline = time.monotonic() + 10
        while not ended.done() and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert ended.done()
        assert number not in server._ends

    def test_where_the_first_process_dies_another_takes_its_place(self):
        from dspy_stream.interpreters import server as servers

        python = PythonInterpreter()
        python.execute("1")
        first = servers._current
        children = Path(f"/proc/{first._process}/task/{first._process}/children")
        sessions = children.read_text().split() if children.exists() else []

        def kill():
            os.kill(first._process, 9)

        python.tools["kill"] = kill
        with pytest.raises(CodeInterpreterError, match=r"first process ended|closed"):
            python.execute(
                "import signal; signal.signal(signal.SIGALRM, signal.SIG_IGN)\nkill()\nwhile True: pass"
            )
        assert gone(first._process)
        assert all(gone(int(each)) for each in sessions)
        with PythonInterpreter() as other:
            assert other.execute("2") == 2
        assert servers._current is not first
        assert not os.path.exists(first._folder)

    def test_one_piece_of_code_at_a_time(self):
        found = []

        def again():
            try:
                python.execute("1")
            except CodeInterpreterError as error:
                found.append(str(error))

        with PythonInterpreter(tools={"again": again}) as python:
            python.execute("again()")
        assert "runs one piece at a time" in found[0]


class TestFromCoroutines:
    def test_many_sessions_on_any_loop(self):
        async def one(number):
            python = PythonInterpreter(tools={"add": lambda x: x + number})
            try:
                await python.astart()
                await python.aexecute("x = add(1)")
                return await python.aexecute("SUBMIT(add(x))")
            finally:
                python.shutdown()

        async def all_of_them():
            return await asyncio.gather(*(one(number) for number in range(20)))

        assert [made.output["output"] for made in asyncio.run(all_of_them())] == [
            2 * number + 1 for number in range(20)
        ]

    def test_a_cancelled_one_is_over(self):
        async def cancelled():
            python = PythonInterpreter()
            await python.astart()
            task = asyncio.ensure_future(python.aexecute("import time; time.sleep(60)"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(CodeInterpreterError, match="over"):
                await python.aexecute("1")

        asyncio.run(cancelled())


def test_callbacks_hear_of_everything_with_dspys_names():
    heard = []

    class Ear(BaseCallback):
        pass

    def handler(name):
        def hear(self, call_id, **what):
            heard.append((name.removeprefix("on_interpreter_"), what.get("inputs", what.get("outputs"))))

        return hear

    for name in vars(BaseCallback):
        if name.startswith("on_interpreter_"):
            setattr(Ear, name, handler(name))

    with PythonInterpreter(tools={"twice": lambda x: 2 * x}, callbacks=[Ear()]) as python:
        python.execute("twice(x)", {"x": 2})
    assert heard == [
        ("startup_start", {}),
        ("startup_end", None),
        ("execute_start", {"code": "twice(x)", "variables": {"x": 2}}),
        ("tool_call_start", {"tool_name": "twice", "args": [2], "kwargs": {}}),
        ("tool_call_end", 4),
        ("execute_end", 4),
        ("shutdown_start", {}),
        ("shutdown_end", None),
    ]


class TestOrders:
    def test_a_session_given_up_while_it_begins_leaves_nothing(self, monkeypatch):
        from dspy_stream.interpreters import server as servers

        async def never(**_):
            raise asyncio.CancelledError

        async def given_up():
            python = PythonInterpreter()
            with monkeypatch.context() as patch:
                patch.setattr(asyncio, "open_unix_connection", never)
                with pytest.raises(asyncio.CancelledError):
                    await python.astart()
            python.shutdown()

        with PythonInterpreter() as other:
            other.execute("1")
            asyncio.run(given_up())
            ends = servers._current._ends
            deadline = time.monotonic() + 10
            while len(ends) > 1 and time.monotonic() < deadline:
                threading.Event().wait(0.01)
            assert list(ends) == [other._session._number]

    def test_an_order_that_finds_no_room_is_given_again(self, monkeypatch):
        from dspy_stream.interpreters import server as servers

        python = PythonInterpreter(limits=SandboxLimits(seconds=60))
        python.execute("1")
        server, ended = servers._current, python._session._ended
        sent, refusals = server._sent, [False, False]

        def full(line, sockets):
            return refusals.pop() if refusals else sent(line, sockets)

        monkeypatch.setattr(server, "_sent", full)
        python.shutdown()
        deadline = time.monotonic() + 10
        while not ended.done() and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert ended.done()
        assert refusals == []
