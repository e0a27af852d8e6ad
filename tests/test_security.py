"""Data is never code, and never a place to go: nothing in a row or an answer is run or opened."""

# ruff: noqa: E501 - the script is one text
import ast
import functools
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import dspy_stream

ROOT = Path(dspy_stream.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# The files that may import by name, and which names: closed tables of our own, and the user's flow.
IMPORTERS = {
    *("__init__.py", "stream/__init__.py", "state/__init__.py", "lm/__init__.py", "modules/__init__.py"),
    *("interpreters/__init__.py", "paths.py"),
    "cli/load.py",
}

# The one file that runs code, and how often it says so: it is loaded by the processes of the sandbox alone.
INTERPRETER = {"interpreters/child/session.py": 4}

UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
UNSAFE_MODULES = {
    *("pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "yaml", "jsonpickle", "joblib"),
    *("runpy", "code", "codeop", "imp", "pty", "telnetlib", "ftplib", "xmlrpc"),
}


@functools.cache
def tree(path):
    return list(ast.walk(ast.parse(path.read_text())))


def calls():
    for path in FILES:
        for node in tree(path):
            if isinstance(node, ast.Call):
                yield path.relative_to(ROOT).as_posix(), node


def imported():
    for path in FILES:
        for node in tree(path):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield path.relative_to(ROOT).as_posix(), alias.name
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield path.relative_to(ROOT).as_posix(), node.module


class TestSource:
    def test_nothing_is_evaluated(self):
        found = [
            (name, f"{name}:{node.lineno} {node.func.id}")
            for name, node in calls()
            if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS
        ]
        assert not [where for name, where in found if name not in INTERPRETER]
        for name, count in INTERPRETER.items():
            assert len([where for other, where in found if other == name]) == count

    def test_what_runs_in_the_sandbox_is_not_imported_outside(self):
        child = "dspy_stream.interpreters.child"
        assert not [
            f"{name} imports {module}"
            for name, module in imported()
            if module.startswith(child) and not name.startswith("interpreters/child/")
        ]

    def test_programs_are_started_in_few_places(self):
        started = {
            name
            for name, node in calls()
            if isinstance(node.func, ast.Attribute)
            and node.func.attr in ("posix_spawn", "fork", "create_subprocess_exec", "create_subprocess_shell")
        }
        sandbox = {"interpreters/server.py", "interpreters/child/boot.py"}
        assert started == {*sandbox, "modules/process/workers.py"}

    def test_nothing_is_unpickled_and_no_module_that_could_is_imported(self):
        assert not [
            f"{name} imports {module}"
            for name, module in imported()
            if module.partition(".")[0] in UNSAFE_MODULES
        ]

    def test_modules_are_imported_by_name_in_few_places(self):
        found = {
            name
            for name, node in calls()
            if isinstance(node.func, ast.Attribute)
            and node.func.attr in ("import_module", "exec_module", "spec_from_file_location", "resolve_name")
        }
        assert found <= IMPORTERS

    def test_the_lazy_tables_are_looked_up_and_not_trusted(self):
        for name in IMPORTERS - {"cli/load.py"}:
            text = (ROOT / name).read_text()
            if "import_module" in text:
                assert "_EXPORTS" in text or "_HOMES" in text, name

    def test_no_shell_is_started(self):
        started = {
            name
            for name, node in calls()
            if isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and (node.func.value.id, node.func.attr)
            in {
                ("os", "system"),
                ("os", "popen"),
                ("subprocess", "run"),
                ("subprocess", "Popen"),
                ("os", "execv"),
            }
        }
        assert not started

    def test_no_data_is_a_template(self):
        """``str.format`` reaches into attributes of what it is given; f-strings do not.

        Without arguments there is nothing to reach into: that is the ``format()`` of a custom type.
        """
        formatted = [
            f"{name}:{node.lineno}"
            for name, node in calls()
            if isinstance(node.func, ast.Attribute)
            and node.func.attr in ("format", "format_map")
            and (node.args or node.keywords)
            and not isinstance(node.func.value, ast.Constant)
            and not (isinstance(node.func.value, ast.Name) and node.func.value.id == "provider")
        ]
        assert not formatted

    def test_no_caller_is_looked_at(self):
        """But for the class statement of a signature, whose annotations may name local types."""
        found = {
            path.relative_to(ROOT).as_posix(): len(
                re.findall(r"\b_getframe\b|inspect\.stack\(|currentframe\(", text)
            )
            for path in FILES
            if (text := path.read_text())
        }
        assert {name: count for name, count in found.items() if count} == {"program/contract.py": 1}


SCRIPT = textwrap.dedent(
    '''
    import json, sys, threading
    from pathlib import Path

    canary = Path("canary-file.txt").resolve()
    canary.write_text("secret")
    MARKS = ("canary-file", "169.254.169.254", "canary_module", "canary.invalid")
    seen, armed = [], threading.Event()

    def hook(event, args):
        if not armed.is_set() or event in ("object.__getattr__",):
            return
        try:
            text = repr(args)
        except Exception:
            return
        if any(mark in text for mark in MARKS):
            seen.append([event, text[:300]])

    sys.addaudithook(hook)

    import dspy_stream as ds
    import bytewax.testing, rocksdict, dspy_stream.stream.run, dspy_stream.stream.session, dspy_stream.cli.main
    from dspy_stream.configuration import settings

    BAD = [
        str(canary), f"file://{canary}", "http://169.254.169.254/latest/meta-data/", "https://canary.invalid/x.png",
        "../canary-file.txt", "~/canary-file.txt", "canary_module.function", "__import__('canary_module').x",
        '{"lc": 1, "type": "constructor", "id": ["canary_module", "X"], "kwargs": {}}', "{0.__class__.canary_module}",
        "!!python/object/apply:canary_module.x []", "cos\\ncanary_module\\n(S'x'\\ntR.", "${canary_module}", "$(cat canary-file.txt)",
        "<img src='http://169.254.169.254/'>", "data:text/plain;base64,canary-file", "ldap://canary.invalid/a", "\\\\\\\\canary.invalid\\\\x",
    ]

    def answer(request):
        number = int(request.tail[0].content.split("number ")[1].split(".")[0])
        bad = BAD[number % len(BAD)]
        kind = number // len(BAD)
        if kind == 0:
            return {"text": bad, "items": [bad], "more": {"__class__": bad, "path": bad, "url": bad}, "where": bad}
        if kind == 1:
            return bad                                     # no answer at all: repaired, then a dead letter
        return "[[ ## text ## ]]\\n" + bad + "\\n\\n[[ ## items ## ]]\\n" + bad

    from typing import Any
    from pathlib import Path as P

    class Ask(ds.Signature):
        """Answer."""
        question: str = ds.InputField()
        text: str = ds.OutputField()
        items: list[str] = ds.OutputField()
        more: dict[str, Any] = ds.OutputField()
        where: str = ds.OutputField()

    rows = [{"question": f"number {n}. {BAD[n % len(BAD)]}", "path": BAD[n % len(BAD)]} for n in range(3 * len(BAD))]
    with open("in.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\\n" for row in rows)
    flow = (ds.Stream.read("in.jsonl", name="f21").through(ds.Predict(Ask)).limit_failures(consecutive=None, ratio=None)
            .write("out.jsonl", dead_letters="dead.jsonl"))
    ds.Predict("question -> answer")(question="warm", lm="local/nearest")
    flow.run(lm=ds.ScriptedLM(answer), limit=0, state="s", quiet=True)

    armed.set()
    report = flow.run(lm=ds.ScriptedLM(answer), state="s", quiet=True)
    predict = ds.Predict(Ask)
    made = predict(question="number 2.", lm=ds.ScriptedLM(answer))
    predict.demos = [{"question": BAD[0], **made.toDict()} if hasattr(made, "toDict") else {"question": BAD[0], **dict(made.items())}]
    predict.save("p.json")
    ds.Predict(Ask).load("p.json")
    for arguments in (["dlq", "list", "s"], ["dlq", "export", "s", "-"], ["state", "inspect", "s"]):
        sys.argv = ["dspy-stream", *arguments]
        try:
            dspy_stream.cli.main.main() if hasattr(dspy_stream.cli.main, "main") else dspy_stream.cli.main()
        except SystemExit:
            pass
    armed.clear()
    first = [json.loads(line) for line in open("out.jsonl")]
    print("\\nRESULT" + json.dumps({"seen": seen, "out": report.rows_out, "dead": report.dead_letters,
          "texts": sorted(row["text"] for row in first), "bad": sorted(BAD)}))
    '''
)


def test_answers_that_look_like_places_are_never_opened(tmp_path):
    """Every way out of the interpreter raises an audit event; none may name what an answer named."""
    (tmp_path / "script.py").write_text(SCRIPT)
    made = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout.split("RESULT", 1)[1])
    assert result["seen"] == []
    assert result["dead"] == 2 * len(result["bad"])
    assert result["texts"] == result["bad"], "they are text, and come out as they came in"


class TestSavedState:
    """A saved program is data too."""

    @pytest.mark.parametrize(
        "state",
        [
            {
                "self": {
                    "signature": {"instructions": "x", "fields": []},
                    "demos": [{"__reduce__": ["os.system", ["x"]]}],
                }
            },
            {
                "signature": {"instructions": "{0.__class__}", "fields": [{}, {}]},
                "demos": [],
                "lm": {"_dspy_lm_class": "os.system", "model": "x"},
            },
        ],
    )
    def test_names_in_it_are_not_looked_up(self, tmp_path, state):
        import dspy_stream.modules.saving  # what reads saved files is loaded when the first is read
        from dspy_stream.errors import ConfigurationError
        from dspy_stream.modules import Predict

        assert dspy_stream.modules.saving
        (tmp_path / "p.json").write_text(json.dumps(state))
        before = set(sys.modules)
        try:
            Predict("a -> b").load(tmp_path / "p.json")
        except ConfigurationError:
            pass
        assert set(sys.modules) - before <= {"dspy_stream.lm.base"}
