"""Pictures in rows: made by the user's own code, through a snapshot, a crash and a resumption."""

import json
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dspy_stream as ds
from dspy_stream.program.types import (
    Audio,
    Citations,
    Code,
    Document,
    File,
    History,
    Image,
    Tool,
    ToolCalls,
    Type,
)
from dspy_stream.rows import Origin, Row
from dspy_stream.stream.codec import freeze, thaw

ORIGIN = Origin("s", "p", 1)
PICTURES = st.sampled_from([Image("https://x.example/a.png"), Image(b"GIF89a"), File(file_id="f"), History()])
NAMES = st.sampled_from(["a", "b", "\0type", "value", "Image"])
VALUES = st.recursive(
    PICTURES | st.integers(-5, 5) | st.sampled_from(["Image", "x", "\0type"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


class Own(Type):
    n: int

    def format(self):
        return str(self.n)


class TestSnapshots:
    @pytest.mark.parametrize(
        "value",
        [
            Image("https://x.example/a.png"),
            Audio(data="aGk=", audio_format="wav"),
            File(file_id="f", filename="n"),
            Document("text", title="T"),
            History(messages=[{"q": "a"}]),
            ToolCalls(tool_calls=[{"name": "f", "args": {"a": 1}}]),
            Citations(citations=["q"]),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_values_of_the_types_come_back(self, value):
        row = Row("r", {"v": value, "more": [{"k": value}], "n": 1}, ORIGIN)
        frozen = freeze(row)
        assert type(frozen[1]) is bytes
        assert thaw(frozen, {}) == row

    def test_texts_come_back_as_text_and_own_types_as_their_json(self):
        back = thaw(
            freeze(Row("r", {"c": Code("x"), "o": Own(n=1), "t": Tool(lambda: 1, name="f")}, ORIGIN)), {}
        )
        assert (back.c, back.o, back.t.name) == ("x", {"n": 1}, "f")

    def test_rows_without_them_are_written_as_ever(self):
        assert freeze(Row("r", {"a": [1, "b"]}, ORIGIN))[1] == b'{"a":[1,"b"]}'

    @given(st.dictionaries(NAMES, VALUES, max_size=3))
    def test_data_cannot_pass_for_a_value(self, fields):
        back = thaw(freeze(Row("r", fields, ORIGIN)), {})
        forged = "\\u0000type" in json.dumps(fields, default=str)
        if forged:  # the values are given up, the data are not
            assert json.dumps(back.fields, default=lambda v: v.model_dump()) == json.dumps(
                fields, default=lambda v: v.model_dump()
            )
        else:
            assert back.fields == fields


FLOW = textwrap.dedent(
    '''
    import asyncio, os, sys
    from pathlib import Path
    import dspy_stream as ds
    from dspy_stream.program.types import Image

    class Look(ds.Signature):
        """Look."""
        number: str = ds.InputField()
        image: Image = ds.InputField()
        seen: str = ds.OutputField()

    calls = 0

    async def answer(request):
        global calls
        calls += 1
        if not Path("killed").exists():
            if calls > 6:  # some rows are through, some are in flight, and a snapshot was made
                await asyncio.sleep(1.5)
                Path("killed").write_text("")
                os._exit(9)
        content = request.tail[-1].content
        [picture] = [block for block in content if block["type"] == "image_url"]
        log("answered", content[0]["text"].split("\\n")[1])
        return {"seen": picture["image_url"]["url"]}

    def log(what, number):
        with open(f"{what}.{sys.argv[1]}", "a") as file:
            file.write(number + "\\n")

    def with_picture(row):
        log("mapped", row.number)
        return {**row.fields, "image": Image.from_path(row.path, root="pictures"), "extra": [row.path]}

    flow = (
        ds.Stream.read("in.jsonl", name="pictures")
        .map(with_picture)
        .through(ds.Predict(Look), capacity=4)
        .map(lambda row: {"number": row.number, "same": row.image.url == row.seen, "seen": row.seen})
        .write("out.jsonl", dead_letters="dead.jsonl")
    )
    print(flow.run(lm=ds.ScriptedLM(answer), state="state", quiet=True, epoch=0.1))
    '''
)


def numbers(path):
    return set(path.read_text().split()) if path.exists() else set()


def run(folder, name):
    return subprocess.run(
        [sys.executable, "-W", "error", "flow.py", name],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_flow_of_pictures_survives_a_crash(tmp_path):
    (tmp_path / "flow.py").write_text(FLOW)
    (tmp_path / "pictures").mkdir()
    urls = {}
    with open(tmp_path / "in.jsonl", "w") as rows:
        for number in range(12):
            image = Image.from_bytes(b"GIF89a" + bytes([number]))
            urls[str(number)] = image.url
            (tmp_path / "pictures" / f"{number}.gif").write_bytes(b"GIF89a" + bytes([number]))
            rows.write(json.dumps({"number": str(number), "path": f"{number}.gif"}) + "\n")
        rows.write(json.dumps({"number": "12", "path": "../flow.py"}) + "\n")
    first = run(tmp_path, "first")
    assert first.returncode == 9, first.stderr
    second = run(tmp_path, "second")
    assert second.returncode == 0, second.stderr
    made = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["number"]: row["seen"] for row in made} == urls
    assert all(row["same"] for row in made)
    assert len(made) == 12
    from_snapshot = numbers(tmp_path / "answered.second") - numbers(tmp_path / "mapped.second")
    assert from_snapshot, "no row came out of a snapshot; the test shows nothing"
    [dead] = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert dead["stage"] == "map"
    assert "not below" in dead["error"]["message"]


def test_a_column_of_addresses_needs_no_map(tmp_path):
    rows = [{"image": "https://x.example/a.png"}, {"image": "a.png"}]
    lm = ds.ScriptedLM(lambda request: {"answer": str(len(request.tail[-1].content))})
    flow = ds.Stream.read(rows).through(ds.Predict("image: Image -> answer")).write(tmp_path / "out.jsonl")
    report = flow.run(lm=lm, state=tmp_path / "state", quiet=True)
    [made] = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (made["image"], made["answer"], report.dead_letters) == ("https://x.example/a.png", "3", 1)


def test_pictures_are_written_as_json(tmp_path):
    flow = (
        ds.Stream.read([{"n": 1}])
        .map(lambda row: {"image": Image("https://x.example/a.png"), "code": Code("x"), "own": Own(n=1)})
        .write(tmp_path / "out.jsonl")
    )
    flow.run(state=None, quiet=True)
    made = json.loads((tmp_path / "out.jsonl").read_text())
    assert (made["image"], made["code"], made["own"]) == ({"url": "https://x.example/a.png"}, "x", {"n": 1})
