import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "datasets" / "office_shop"


def rows(name):
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def run(script, *arguments):
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=60)


def test_the_files_are_what_the_generator_makes():
    done = run(FOLDER / "generate.py", "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_check_names_the_file_that_was_edited_by_hand(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "shop")
    with (tmp_path / "shop" / "mails.jsonl").open("a", encoding="utf-8") as file:
        file.write("{}\n")
    done = run(tmp_path / "shop" / "generate.py", "--check")
    assert done.returncode == 1
    assert "mails.jsonl" in done.stderr
    assert "train.jsonl" not in done.stderr
    assert run(tmp_path / "shop" / "generate.py").returncode == 0
    assert (tmp_path / "shop" / "mails.jsonl").read_bytes() == (FOLDER / "mails.jsonl").read_bytes()


def test_another_argument_is_refused():
    assert run(FOLDER / "generate.py", "--chekc").returncode == 2


@pytest.mark.parametrize("name", ["train.jsonl", "questions.jsonl"])
def test_each_answer_stands_on_its_page(name):
    for row in rows(name):
        if row["page"] is not None and row["answer"] != "no":
            page = (FOLDER / "help" / f"{row['page']}.md").read_text(encoding="utf-8").lower()
            assert row["answer"].lower() in page, row


def test_the_splits_share_no_question():
    train = {row["question"].lower() for row in rows("train.jsonl")}
    test = {row["question"].lower() for row in rows("questions.jsonl")}
    assert not train & test
    assert len(test) == 70


def test_the_readme_says_how_many_rows_there_are():
    text = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    for path in sorted(FOLDER.glob("*.jsonl")):
        assert f"| `office_shop/{path.name}` | {len(rows(path.name))} |" in text


def test_labels_of_enquiries_are_what_the_tables_hold():
    orders = {row["number"]: row for row in rows("orders.jsonl")}
    parcels = {row["parcel"]: row for row in rows("parcels.jsonl")}
    for row in rows("enquiries.jsonl"):
        number = next((n for n in orders if n in row["question"]), None)
        if number is not None:
            order = orders[number]
            assert row["expected"]["status"] == order["status"]
            assert row["expected"]["arrives"] == parcels.get(order["parcel"], {}).get("arrives")
