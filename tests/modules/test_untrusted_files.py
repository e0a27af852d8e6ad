"""Files that somebody else made: refused, or kept as data; nothing in them is run, imported or called."""

# ruff: noqa: E501 - the script is one text
import copy
import json
import subprocess
import sys
import textwrap

import pytest

import dspy_stream as ds
from dspy_stream.errors import ConfigurationError
from dspy_stream.lm import LM
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules.format import Format
from dspy_stream.modules.saved import _digest
from dspy_stream.modules.saving import load as load_program


def predict():
    made = ds.Predict("text -> label: str")
    made.lm = LM("openai/gpt-4o-mini", temperature=0.3)
    return made


def document(tmp_path):
    """A good saved program, to be made bad."""
    (predict() | Format("{label}!")).save(tmp_path / "good.json", save_program=True)
    return json.loads((tmp_path / "good.json").read_text())


def written(tmp_path, made):
    """The document with a digest that is right: whoever changes a file can work that out too."""
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({**made, "digest": _digest(made)}))
    return path


def put(*path_and_value):
    *path, value = path_and_value

    def change(made):
        for key in path[:-1]:
            made = made[key]
        made[path[-1]] = value

    return change


STAGE = ("program", "stages", 0, "module")
FIELDS = (*STAGE, "signature", "fields")
ENTRY = ("predictors", "stages[0]")
FIELD = {"side": "output", "type": "str", "prefix": "X:", "desc": "x"}

BAD_PROGRAMS = {
    "an unknown part": put(*STAGE, "part", "Popen"),
    "a dotted part": put(*STAGE, "part", "os.system"),
    "a dunder part": put(*STAGE, "part", "__class__"),
    "a part that is no text": put(*STAGE, "part", ["Predict"]),
    "no object": put("program", "Predict"),
    "a serialized object": put(
        "program", {"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {}}
    ),
    "a further key": put("program", "callbacks", []),
    "a further key at the top": put("lc", 1),
    "a further key of a part": put("program", "stages", 0, "isolation", "process"),
    "an option that is none": put("program", "stages", 0, "options", {"shell": True}),
    "an option out of range": put("program", "stages", 0, "options", {"retries": -1}),
    "a part in processes": put("program", "stages", 0, "options", {"isolation": "process"}),
    "defaults that are none": put(
        "program", "stages", 0, "options", {"on_error": "default", "defaults": ["label"]}
    ),
    "outputs that are none": put("program", "stages", 0, "options", {"outputs": 5}),
    "outputs without names": put("program", "stages", 0, "options", {"outputs": {"label": 5}}),
    "a name that is none": put("program", "stages", 0, "options", {"name": {"a": 1}}),
    "a future version": put("version", 2),
    "a version that is no number": put("version", "1"),
    "a version that is true": put("version", True),
    "another format": put("format", "dspy"),
    "a field named __init__": put(*FIELDS, "__init__", FIELD),
    "a field named model_config": put(*FIELDS, "model_config", FIELD),
    "a field that is a word of Python": put(*FIELDS, "class", FIELD),
    "a field with a space": put(*FIELDS, "a b", FIELD),
    "a side that is none": put(*FIELDS, "x", {**FIELD, "side": "both"}),
    "a type that calls": put(*FIELDS, "x", {**FIELD, "type": "__import__('os').system('id')"}),
    "a type of a module": put(*FIELDS, "x", {**FIELD, "type": "os.PathLike"}),
    "a type that is a signature": put(*FIELDS, "x", {**FIELD, "type": "str, y -> z"}),
    "a type that is deep": put(*FIELDS, "x", {**FIELD, "type": "list[" * 500 + "int" + "]" * 500}),
    "a type that is long": put(*FIELDS, "x", {**FIELD, "type": "int | " * 50_000 + "int"}),
    "a pattern": put(*FIELDS, "x", {**FIELD, "constraints": {"pattern": "(a+)+$"}}),
    "a factory": put(*FIELDS, "x", {**FIELD, "default_factory": "list"}),
    "a default of another type": put(*FIELDS, "x", {**FIELD, "type": "int", "default": {"a": 1}}),
    "a template that reaches in": put("program", "stages", 1, "module", "template", "{label.__class__}"),
    "a template of numbers": put("program", "stages", 1, "module", "template", "{0.__class__}"),
    "too many fields": put(*FIELDS, {f"f{n}": FIELD for n in range(500)}),
    "no predictors": put("predictors", []),
    "another predictor": put("predictors", "os", {}),
    "demos that are none": put(*ENTRY, "demos", {"a": 1}),
    "instructions that are none": put(*ENTRY, "signature", "instructions", {"lc": 1}),
    "a setting that is a key": put(*ENTRY, "config", {"api_key": "sk-x"}),
    "a setting that is a place": put(*ENTRY, "config", {"api_base": "http://canary.invalid/v1"}),
    "a setting that is a header": put(*ENTRY, "config", {"extra_headers": {"a": "b"}}),
    "a setting that is another question": put(*ENTRY, "config", {"messages": []}),
    "a class of models": put(*ENTRY, "lm", "_dspy_lm_class", "os.system"),
    "a place of a model": put(*ENTRY, "lm", "api_base", "http://canary.invalid/v1"),
    "a place among the options": put(*ENTRY, "lm", "options", {"api_base": "http://canary.invalid/v1"}),
    "another name for it": put(*ENTRY, "lm", "options", {"base_url": "http://canary.invalid/v1"}),
    "a list of models": put(*ENTRY, "lm", "options", {"model_list": [{"a": 1}]}),
    "a key of a model": put(*ENTRY, "lm", "options", {"api_key": "sk-x"}),
    "callbacks of a model": put(*ENTRY, "lm", "options", {"callbacks": [1]}),
    "a fallback with a place": put(
        *ENTRY,
        "lm",
        "fallbacks",
        [
            {
                "model": "x/y",
                "model_type": "chat",
                "cache": True,
                "options": {},
                "api_base": "http://canary.invalid",
            }
        ],
    ),
}


def test_the_program_that_is_made_bad_is_good(tmp_path):
    made = load_program(written(tmp_path, document(tmp_path)))
    assert [name for name, _ in made.named_predictors()] == ["stages[0]"]


@pytest.mark.parametrize("name", list(BAD_PROGRAMS))
def test_a_program_is_refused(tmp_path, name):
    made = copy.deepcopy(document(tmp_path))
    BAD_PROGRAMS[name](made)
    path = written(tmp_path, made)
    with pytest.raises(ConfigurationError) as raised:
        load_program(path)
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 1500


@pytest.mark.parametrize(
    "change",
    [
        put(*ENTRY, "signature", "instructions", "Other."),
        put("program", "stages", 1, "module", "template", "x"),
        put("written_by", "9.9"),
        put("digest", "0" * 64),
        put("digest", None),
    ],
)
def test_a_file_that_was_changed_by_hand_says_so(tmp_path, change):
    made = document(tmp_path)
    change(made)
    (tmp_path / "bad.json").write_text(json.dumps(made))
    with pytest.raises(ConfigurationError, match="does not match its digest"):
        load_program(tmp_path / "bad.json")


BAD_TEXTS = {
    "nothing": b"",
    "half": b'{"a": ',
    "a list": b"[]",
    "a pickle": b"\x80\x04N.",
    "no utf-8": b'{"a": "\xff"}',
    "a byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "half a character": b'{"a": "\\ud800"}',
    "something after it": b'{"a": 1} x',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "too large a number": b'{"a": 1e999}',
    "too long a number": b'{"a": ' + b"9" * 5000 + b"}",
    "a key twice": b'{"self": {}, "self": {}}',
    "a key twice further in": b'{"self": {"demos": [{"a": 1, "a": 2}]}}',
    "10,000 deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "10,000 lists deep": b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "100 deep": b'{"a":' * 100 + b"1" + b"}" * 100,
    "10 MB": b'{"a": "' + b"x" * 10_000_000 + b'"}',
}


@pytest.mark.parametrize("name", list(BAD_TEXTS))
def test_a_text_is_refused(tmp_path, name):
    path = tmp_path / "p.json"
    path.write_bytes(BAD_TEXTS[name])
    one = predict()
    before = one.dump_state()
    for load in (one.load, load_program):
        with pytest.raises(ConfigurationError) as raised:
            load(path)
        assert str(path) in str(raised.value)
        assert len(str(raised.value)) < 1000
    assert one.dump_state() == before


def state(**changes):
    return {**predict().dump_state(), **changes}


BAD_STATES = {
    "a serialized object": {"lc": 1, "type": "constructor", "id": ["os", "system"]},
    "a further key": state(__class__="os.system"),
    "source code": {"module_src": "import os", "lm": None},
    "a signature that is none": state(signature={"lc": 1}),
    "an old form": state(extended_signature={}),
    "decision types": state(fields={"a": {"threshold": 1}}),
    "a class of models": state(lm={"_dspy_lm_class": "os.system", "model": "openai/x"}),
    "a class of models that is no text": state(lm={"_dspy_lm_class": ["x"], "model": "openai/x"}),
    "an engine of its own": state(lm={"model": "openai/x", "engine": {"lc": 1}}),
    "a model that is none": state(lm={"lc": 1}),
    "a model that is a list": state(lm=["openai/x"]),
    "demos that are texts": state(demos=["x"]),
}


@pytest.mark.parametrize("name", list(BAD_STATES))
@pytest.mark.parametrize("unsafe", [False, True])
def test_a_state_is_refused(tmp_path, name, unsafe):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(BAD_STATES[name]))
    one = predict()
    before = one.dump_state()
    with pytest.raises(ConfigurationError, match="does not fit"):
        one.load(path, allow_pickle=True, allow_unsafe_lm_state=unsafe)
    assert one.dump_state() == before


class TestKeptAsData:
    def test_braces_in_instructions_and_demos_are_text(self, tmp_path):
        instructions = "Say {0.__class__} and {text} and %s and ${text}."
        one = predict()
        one.signature = one.signature.with_instructions(instructions)
        one.demos = [{"text": '{"lc": 1}', "label": "{0.__class__}"}]
        for form in ("dspy", "dspy_stream"):
            one.save(tmp_path / "p.json", format=form)
            other = predict()
            other.load(tmp_path / "p.json")
            lm = ScriptedLM(lambda request: {"label": "x"})
            other(text="hello", lm=lm)
            prompt = "\n".join(message.content for message in lm.calls[0].messages)
            assert instructions in prompt
            assert '{"lc": 1}' in prompt
            assert "{0.__class__}" in prompt

    def test_a_server_in_dspys_state_is_not_asked_unless_the_file_is_trusted(self, tmp_path):
        saved = {
            "model": "openai/x",
            "api_base": "http://127.0.0.1:9/v1",
            "api_key": "sk-x",
            "model_type": "chat",
        }
        (tmp_path / "p.json").write_text(json.dumps(state(lm=saved)))
        one = predict()
        one.load(tmp_path / "p.json")
        with pytest.raises(ds.LMError, match="servers are not taken from files"):
            one(text="x")
        assert "sk-x" not in json.dumps(one.dump_state())
        one.load(tmp_path / "p.json", allow_unsafe_lm_state=True)
        assert one.lm.api_base == "http://127.0.0.1:9/v1"
        assert "sk-x" not in repr(one.lm) + json.dumps(one.dump_state())

    @pytest.mark.parametrize("unsafe", [False, True])
    @pytest.mark.parametrize(
        ("option", "words"),
        [
            ("headers", "'headers' is not an option .* the key is api_key="),
            ("extra_headers", "'extra_headers' is not an option .* register_provider"),
        ],
    )
    def test_a_model_with_options_that_are_not_sent_is_kept_and_says_so_when_it_is_asked(
        self, option, words, unsafe, tmp_path
    ):
        one = predict()
        one.demos = [{"text": "a", "label": "b"}]
        one.lm = LM("openai/x", api_base="http://127.0.0.1:9/v1" if unsafe else None)
        state = one.dump_state()
        state["lm"][option] = {"x": "y"}
        (tmp_path / "p.json").write_text(json.dumps(state))
        other = predict()
        other.load(tmp_path / "p.json", allow_unsafe_lm_state=unsafe)
        assert [dict(demo) for demo in other.demos] == one.demos
        with pytest.raises(ds.LMError, match=f"cannot be asked: {words}.*; name another, set_lm or lm="):
            other(text="x")

    def test_the_fields_of_a_saved_extra_body_are_options_and_no_more(self):
        state = {"model": "openai/x", "extra_body": {"top_k": 3}}
        assert dict(LM.load_state(state).options) == {"top_k": 3}
        held = LM.load_state({"model": "openai/x", "extra_body": {"headers": {"x": "y"}}})
        with pytest.raises(ds.LMError, match="'headers' is not an option"):
            held("x")

    def test_what_dspy_26_saved_beside_the_options_is_not_sent(self):
        lm = LM.load_state(
            {"model": "openai/x", "cache_in_memory": True, "callbacks": [1], "prices": {}, "a": 1}
        )
        assert dict(lm.options) == {"a": 1}


SCRIPT = textwrap.dedent(
    """
    import json, sys, threading
    from pathlib import Path

    seen, armed, allowed = [], threading.Event(), set()

    def hook(event, args):
        if not armed.is_set():
            return
        if event == "open":
            if str(args[0]) not in allowed:
                seen.append([event, str(args[0])])
        elif event in ("import", "exec", "pickle.find_class", "marshal.loads", "os.system", "subprocess.Popen", "ctypes.dlopen") or event.startswith(("socket.", "os.exec", "os.spawn", "shutil.", "webbrowser.")):
            seen.append([event, repr(args)[:200]])

    sys.addaudithook(hook)

    import dspy_stream as ds
    from dspy_stream.modules.saving import load as load_program

    folder = Path(sys.argv[1])
    files = sorted(folder.glob("*.json"))
    allowed.update(map(str, files))

    def load_all():
        for path in files:
            for load in (load_program, ds.Predict("text -> label: str").load):
                try:
                    load(path)
                except ds.ConfigurationError:
                    pass
                except ds.LMError:
                    pass

    load_all()  # what is imported on first use is imported now
    armed.set()
    load_all()
    armed.clear()
    print(json.dumps([len(files), seen]))
    """
)


def test_nothing_is_opened_called_imported_or_run(tmp_path):
    """All of the files above, with an audit hook that hears of every such thing."""
    good = document(tmp_path)
    for number, change in enumerate(BAD_PROGRAMS.values()):
        made = copy.deepcopy(good)
        change(made)
        (tmp_path / f"program{number}.json").write_text(json.dumps({**made, "digest": _digest(made)}))
    for number, data in enumerate(BAD_TEXTS.values()):
        (tmp_path / f"text{number}.json").write_bytes(data)
    for number, saved in enumerate(BAD_STATES.values()):
        (tmp_path / f"state{number}.json").write_text(json.dumps(saved))
    made = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    count, seen = json.loads(made.stdout)
    assert count > len(BAD_PROGRAMS) + len(BAD_TEXTS) + len(BAD_STATES)
    assert seen == []
