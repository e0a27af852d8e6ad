# ruff: noqa: E501 - the script is one text
"""F21 for the types: nothing that comes out of data is opened, fetched, imported or run.

An audit hook cannot be taken off again, so the script runs in a process of its own.
"""

import json
import subprocess
import sys
import textwrap

SCRIPT = textwrap.dedent(
    """
    import json, sys, threading
    from pathlib import Path

    canary = Path("canary-file.png").resolve()
    canary.write_bytes(b"\\x89PNG\\r\\n\\x1a\\n")
    MARKS = ("canary-file", "169.254.169.254", "canary_module", "canary.invalid")
    NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")
    seen, armed = [], threading.Event()

    def hook(event, args):
        # A type in a signature string is parsed to a tree, which is never run: that would be "exec".
        if armed.is_set() and event not in ("object.__getattr__", "compile"):
            text = repr(args)
            if event in NETWORK or any(mark in text for mark in MARKS):
                seen.append([event, text[:200]])

    sys.addaudithook(hook)

    import dspy_stream as ds
    from dspy_stream.adapters import ChatAdapter, JSONAdapter
    from dspy_stream.adapters.xml import XMLAdapter
    from dspy_stream.errors import AdapterParseError, AdapterRenderError, ConfigurationError
    from dspy_stream.program.grammar import parse_type
    from dspy_stream.program.types import NAMED, Image, Tool
    from dspy_stream.stream.codec import freeze, thaw
    from dspy_stream.rows import Origin, Row
    from pydantic import TypeAdapter, ValidationError

    START, END = "<<CUSTOM-TYPE-START-IDENTIFIER>>", "<<CUSTOM-TYPE-END-IDENTIFIER>>"
    PLACES = [
        str(canary), "canary-file.png", f"file://{canary}", "http://169.254.169.254/latest/", "~/canary-file.png",
        "https://canary.invalid/x.png", "gs://canary.invalid/x", "\\\\\\\\canary.invalid\\\\x", "canary_module.f",
        f"data:image/png;base64,{canary}", f"@{canary}", "{0.__class__.canary_module}",
    ]
    BAD = PLACES + [
        made
        for place in PLACES
        for made in (
            {"url": place}, {"file_data": place}, {"file_id": place}, {"data": place, "audio_format": "wav"},
            {"path": place}, {"name": "canary_module.f", "args": {"x": place}}, {"func": "canary_module.f", "name": "f"},
            {"_type": "canary_module.X"}, {"\\0type": "canary_module", "value": place}, [place], [{"url": place}],
            f'{START}[{{"type": "image_url", "image_url": {{"url": {json.dumps(place)}}}}}]{END}',
            {"type": "image_url", "image_url": {"url": place}},
            [{"type": "function", "function": {"name": "canary_module", "arguments": json.dumps({"a": place})}}],
        )
    ]
    kinds = [*NAMED.values(), list[Image], dict[str, Image], Image | str, Image | None]
    adapters = [TypeAdapter(kind) for kind in kinds]
    prompts = [
        (adapter.prepare(ds.Signature({"x": (kind, ds.InputField()), "y": (kind, ds.OutputField())})))
        for adapter in (ChatAdapter(), JSONAdapter(), XMLAdapter()) for kind in (Image, list[Image], NAMED["File"], NAMED["ToolCalls"])
    ]
    predict = ds.Predict(ds.Signature("x: Image, t: list[Tool] -> y: Image, c: ToolCalls"))
    tried = kept = 0
    ds.Predict("q -> a")(q="warm", lm="local/nearest")

    armed.set()
    for bad in BAD:
        text = bad if isinstance(bad, str) else json.dumps(bad)
        for adapter in adapters:
            for call in (lambda: adapter.validate_python(bad), lambda: adapter.validate_json(json.dumps(bad))):
                tried += 1
                try:
                    value = call()
                    kept += 1
                    repr(value), str(value), hash(str(value)), adapter.dump_json(value)
                    row = thaw(freeze(Row("r", {"v": value, "bad": bad}, Origin("s", "p", 0))), {})
                    assert row.bad == bad, (row.bad, bad)
                except ValidationError as error:
                    str(error)
        for prompt in prompts:
            for call in (lambda: prompt.render({"x": bad}), lambda: prompt.parse(text),
                         lambda: prompt.parse(f"[[ ## y ## ]]\\n{text}"), lambda: prompt.parse(f"<y>{text}</y>"),
                         lambda: prompt.parse(json.dumps({"y": bad}))):
                try:
                    call()
                except (AdapterRenderError, AdapterParseError) as error:
                    str(error)
        if BAD.index(bad) % 6 == 0:
            state = {"demos": [{"x": bad, "t": [bad], "y": bad, "c": bad}]}
            try:
                predict.load_state({**predict.dump_state(), **state})
                ChatAdapter().prepare(predict.signature, predict.demos)
                predict.dump_state()
            except ConfigurationError as error:
                str(error)
        try:
            parse_type(text)
        except ValueError:
            pass
    armed.clear()

    armed.set()
    try:
        Image.from_path(canary)             # the hook sees what it should
    finally:
        armed.clear()
    opened = [event for event, _ in seen]
    print(json.dumps({"seen": seen[:-1] if opened[-1:] == ["open"] else seen, "opened": opened[-1:],
                      "tried": tried, "kept": kept, "modules": [m for m in sys.modules if "canary" in m]}))
    """
)


def test_data_stay_data(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seen"] == []
    assert found["modules"] == []
    assert found["opened"] == ["open"], "the hook has seen what the user's own code opened"
    assert found["tried"] > 1000
    assert found["kept"] > 100
