import csv
import io
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.errors import ConfigurationError, InputError, RecordError
from dspy_stream.examples import load_examples, per_label


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


def fields(example):
    return {name: example[name] for name in example.keys()}  # noqa: SIM118 - an Example is no dict


def test_json_lines_keep_the_types_of_their_values(file):
    path = file("a.jsonl", '{"text": "hi", "score": 3}\n\n{"text": "ho", "score": 4.5}')
    first, second = load_examples(path, inputs=["text"])
    assert fields(first) == {"text": "hi", "score": 3}
    assert fields(second) == {"text": "ho", "score": 4.5}


def test_inputs_are_the_named_fields_and_the_rest_are_labels(file):
    [example] = load_examples(file("a.jsonl", '{"q": 1, "c": 2, "a": 3}'), inputs=("q", "c"))
    assert fields(example.inputs()) == {"q": 1, "c": 2}
    assert fields(example.labels()) == {"a": 3}


def test_csv_from_a_spreadsheet_with_mark_crlf_quotes_and_line_breaks(file):
    content = b'\xef\xbb\xbftext,category\r\n"a, ""b""\r\nc",x\r\n\r\n\xc3\xbc,y\r\n'
    first, second = load_examples(file("a.CSV", content), inputs=["text"])
    assert fields(first) == {"text": 'a, "b"\r\nc', "category": "x"}
    assert fields(second) == {"text": "ü", "category": "y"}


def test_tabs_separate_the_values_of_a_tsv_file(file):
    [example] = load_examples(file("a.tsv", "text\tlabel\na, b\tx\n"), inputs=["text"])
    assert fields(example) == {"text": "a, b", "label": "x"}


def test_columns_are_renamed_before_inputs_are_looked_up(file):
    path = file("a.csv", "message,category\nhi,x\n")
    [example] = load_examples(path, inputs=["text"], rename={"message": "text", "category": "intent"})
    assert fields(example) == {"text": "hi", "intent": "x"}


def test_limit_reads_no_further_than_it_has_to(file):
    path = file("a.jsonl", '{"t": 1}\n{"t": 2}\nnot json\n')
    assert [example.t for example in load_examples(path, inputs=["t"], limit=2)] == [1, 2]


@pytest.mark.parametrize("name", ["base", "self", "keys", "inputs", "with space"])
def test_a_column_may_have_any_name(file, name):
    [example] = load_examples(file("a.jsonl", json.dumps({name: 1, "t": 2})), inputs=["t"])
    assert fields(example) == {name: 1, "t": 2}


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("a.csv", "text,category\n", InputError, ["no rows"]),
        ("a.csv", "", InputError, ["no rows"]),
        ("a.jsonl", "\n \n", InputError, ["no rows"]),
        ("a.csv", "text,text\n1,2\n", InputError, ["'text'", "twice"]),
        ("a.xlsx", "PK", ConfigurationError, [".csv", ".jsonl"]),
        (
            "a.csv",
            "texts,category\nhi,x\n",
            ConfigurationError,
            ["'text'", "texts, category", "mean 'texts'"],
        ),
        ("a.csv", "text,c\nhi,x\n\nho\n", RecordError, ["line 4", "1 values for 2 columns"]),
        ("a.csv", 'text,c\n"a\nb",x\nho,y,z\n', RecordError, ["line 4", "3 values for 2 columns"]),
        ("a.csv", 'text,c\nhi,x\n"ho,y\nhu,z\n', RecordError, ["line 3", "not CSV"]),
        ("a.csv", b"text,c\nhi,x\nh\xe9,y\n", RecordError, ["line 3", "byte 2", "UTF-8"]),
        ("a.jsonl", b'{"text": 1}\n{"text": "\xff"}\n', RecordError, ["line 2", "byte 11", "UTF-8"]),
        ("a.jsonl", '{"text": 1}\n\n{"text": \n', RecordError, ["line 3", "not JSON"]),
        ("a.jsonl", '{"text": 1}\n{"text": NaN}\n', RecordError, ["line 2", "not JSON"]),
        ("a.jsonl", '{"text": 1}\n["text"]\n', RecordError, ["line 2", "list"]),
        ("a.jsonl", '{"text": 1}\n{"txt": 1}\n', RecordError, ["line 2", "'text'", "mean 'txt'"]),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(file, name, content, error, words):
    path = file(name, content)
    with pytest.raises(error) as caught:
        load_examples(path, inputs=["text"])
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_missing_file_and_a_folder_are_input_errors(tmp_path):
    with pytest.raises(InputError, match=r"no file .*absent\.csv"):
        load_examples(tmp_path / "absent.csv", inputs=["text"])
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        load_examples(tmp_path / "folder.csv", inputs=["text"])


def test_arguments_that_cannot_be_meant_are_refused(file):
    path = file("a.csv", "text,category\nhi,x\n")
    with pytest.raises(ConfigurationError, match=r"inputs=\['text'\]"):
        load_examples(path, inputs="text")
    with pytest.raises(ConfigurationError, match="limit is 0"):
        load_examples(path, inputs=["text"], limit=0)
    with pytest.raises(ConfigurationError, match="mean 'category'"):
        load_examples(path, inputs=["text"], rename={"categories": "intent"})
    with pytest.raises(ConfigurationError, match="two columns one name"):
        load_examples(path, inputs=["text"], rename={"category": "text"})


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(st.lists(st.tuples(text, text), min_size=1))
def test_every_csv_that_the_csv_module_writes_is_read_back(tmp_path_factory, values):
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *values])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(out.getvalue().encode("utf-8"))
    assert [(e["text"], e["label"]) for e in load_examples(path, inputs=["text"])] == values


rows = st.lists(st.fixed_dictionaries({"n": st.integers(), "y": st.sampled_from("abcde")}))


@given(rows, st.integers(1, 5), st.integers(0, 9))
def test_per_label_takes_up_to_k_of_each_and_is_repeatable(rows, k, seed):
    rows = [{**row, "n": n} for n, row in enumerate(rows)]
    chosen = per_label(rows, "y", k=k, seed=seed)
    have = Counter(row["y"] for row in rows)
    assert Counter(row["y"] for row in chosen) == {y: min(k, n) for y, n in have.items()}
    assert len({row["n"] for row in chosen}) == len(chosen)
    assert chosen == per_label(rows, "y", k=k, seed=seed)


@given(rows)
def test_labels_take_turns_in_their_order_of_appearance(rows):
    have = Counter(row["y"] for row in rows)
    chosen = [row["y"] for row in per_label(rows, "y", k=3)]
    expected = [y for turn in range(3) for y in have if have[y] > turn]
    assert chosen == expected


def test_seed_changes_the_choice_and_another_label_does_not():
    rows = [{"n": n, "y": "a"} for n in range(50)]
    chosen = per_label(rows, "y", k=5, seed=1)
    assert chosen != per_label(rows, "y", k=5, seed=2)
    more = [{"n": -1, "y": "z"}, *rows]
    assert [row for row in per_label(more, "y", k=5, seed=1) if row["y"] == "a"] == chosen


def test_the_choice_for_a_seed_stays_the_same_over_versions():
    rows = [{"n": n, "y": y} for n in range(6) for y in "ab"]
    assert [(row["n"], row["y"]) for row in per_label(rows, "y", k=2, seed=7)] == [
        (2, "a"),
        (5, "b"),
        (1, "a"),
        (3, "b"),
    ]


def test_per_label_names_the_fields_when_the_label_is_missing():
    with pytest.raises(ConfigurationError, match=r"example 2 has no field 'intent'.*mean 'intents'"):
        per_label([{"intent": 1}, {"intents": 1}], "intent", k=1)
    with pytest.raises(ConfigurationError, match="k is 0"):
        per_label([{"intent": 1}], "intent", k=0)
