import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "datasets" / "bank_messages"
GENERATOR = FOLDER / "generate.py"


def rows(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def words(text):
    return frozenset(re.findall(r"[\w']+", text.lower()))


@pytest.fixture(scope="module")
def train():
    return rows("train")


@pytest.fixture(scope="module")
def test():
    return rows("test")


def run(script, *arguments):
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=60)


@pytest.fixture
def copied(tmp_path):
    """The folder as somebody has it who is about to change a fragment."""
    for source in [GENERATOR, *FOLDER.glob("*.jsonl"), *FOLDER.glob("fragments/**/*.*")]:
        target = tmp_path / source.relative_to(FOLDER)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    return tmp_path


def test_the_files_are_what_the_generator_makes():
    done = run(GENERATOR, "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_check_names_the_file_that_was_edited_by_hand(copied):
    with (copied / "test.jsonl").open("a", encoding="utf-8") as file:
        file.write("{}\n")
    done = run(copied / "generate.py", "--check")
    assert done.returncode == 1
    assert "test.jsonl" in done.stderr
    assert "train.jsonl" not in done.stderr


def test_the_generator_restores_the_files_byte_for_byte(copied):
    for name in ("train.jsonl", "test.jsonl"):
        (copied / name).unlink()
    assert run(copied / "generate.py", "--check").returncode == 1
    assert run(copied / "generate.py").returncode == 0
    for name in ("train.jsonl", "test.jsonl"):
        assert (copied / name).read_bytes() == (FOLDER / name).read_bytes()


def test_an_unknown_argument_writes_nothing(copied):
    (copied / "test.jsonl").unlink()
    done = run(copied / "generate.py", "--chek")
    assert done.returncode == 2
    assert "--check" in done.stderr
    assert not (copied / "test.jsonl").exists()


def test_the_intents_are_balanced(train, test):
    assert len(train) == 100
    assert len(test) == 300
    assert set(Counter(row["intent"] for row in train).values()) == {10}
    assert set(Counter(row["intent"] for row in test).values()) == {30}
    assert {row["intent"] for row in train} == {row["intent"] for row in test}


def test_the_readme_lists_the_intents(train):
    listed = re.findall(r"^\| `(\w+)` \|", (FOLDER.parent / "README.md").read_text(encoding="utf-8"), re.M)
    assert set(listed) - {"id", "text", "intent"} == {row["intent"] for row in train}


def test_rows_have_the_documented_columns_and_unique_ids(train, test):
    every = train + test
    assert all(list(row) == ["id", "text", "intent"] for row in every)
    assert [row["id"] for row in every] == [f"m{n:04}" for n in range(1, 401)]


def test_every_slot_is_filled_and_no_text_is_empty(train, test):
    for row in train + test:
        assert row["text"] == row["text"].strip() != ""
        assert not re.search(r"[<>]|  |^= ", row["text"]), row


def test_no_message_of_the_test_split_nearly_repeats_one_of_the_train_split(train, test):
    seen = [words(row["text"]) for row in train]
    for row in test:
        mine = words(row["text"])
        nearest = max(len(mine & other) / len(mine | other) for other in seen)
        assert nearest < 0.5, row


def test_every_sentence_was_written_once():
    sentences = [
        line
        for path in (FOLDER / "fragments" / "sentences").glob("*.txt")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert len(sentences) == 400
    assert len({words(sentence) for sentence in sentences}) == 400


def test_a_bag_of_words_is_good_but_not_perfect(train, test):
    """Words that few intents use decide; if this ever reached 1.0 there would be nothing to learn."""
    used = {
        word: {row["intent"] for row in train if word in words(row["text"])}
        for row in train
        for word in words(row["text"])
    }

    def guess(text):
        votes = Counter()
        for word in words(text):
            for intent in used.get(word, ()):
                votes[intent] += 1 / len(used[word]) ** 2
        return votes.most_common(1)[0][0] if votes else None

    right = sum(guess(row["text"]) == row["intent"] for row in test) / len(test)
    assert 0.6 < right < 0.97
