"""``dspy-stream run``: what it does, what it prints, and how it ends."""

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

import dspy_stream

ROOT = Path(dspy_stream.__file__).parent.parent


def rows(path):
    return [orjson.loads(line) for line in Path(path).read_bytes().splitlines()]


def test_writes_the_output_and_says_how_it_went(cli, here):
    said = cli("run", "flow.py")
    assert said.code == 0
    assert said.out == "", "the data may go to standard output; the summary does not"
    for words in ("demo: finished", "rows out", "8", "dead letters", "2", "out.jsonl"):
        assert words in said.err
    assert len(rows("out.jsonl")) == 8
    assert (here / ".dspy_stream" / "demo").is_dir()


def test_json_is_one_object_on_standard_output(cli, here):
    said = cli("run", "flow.py", "--json")
    report = said.json()
    assert (report["flow"], report["status"], report["rows_in"], report["rows_out"]) == (
        "demo",
        "finished",
        10,
        8,
    )
    assert report["dead_letters"] == 2
    assert said.out.count("\n") == 1
    assert said.err == ""


def test_quiet_says_nothing(cli, here):
    said = cli("run", "flow.py", "-q")
    assert (said.code, said.out, said.err) == (0, "", "")


def test_other_input_output_state_and_name(cli, here):
    (here / "other.jsonl").write_bytes(b'{"question":"x"}\n')
    code = (here / "flow.py").read_text().replace("flow = (", "special = (")
    (here / "two.py").write_text(code)
    said = cli("run", "two.py:special", "-i", "other.jsonl", "-o", "mine.csv", "--state", "here", "--json")
    assert (said.code, said.json()["rows_out"]) == (0, 1)
    assert (here / "mine.csv").read_text().splitlines()[0] == "row_id,question,number"
    assert (here / "here").is_dir()
    assert not (here / "out.jsonl").exists()


def test_output_to_standard_output_is_data_only(here):
    command = [Path(sys.executable).with_name("dspy-stream"), "run", "flow.py", "-o", "-"]
    made = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert len([orjson.loads(line) for line in made.stdout.splitlines()]) == 8
    assert b"finished" in made.stderr


def test_json_beside_rows_on_standard_output_is_on_the_other_one(here):
    command = [Path(sys.executable).with_name("dspy-stream"), "run", "flow.py", "-o", "-", "--json"]
    made = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert len([orjson.loads(line)["number"] for line in made.stdout.splitlines()]) == 8
    report = orjson.loads(made.stderr)
    assert (report["rows_out"], report["outputs"]) == (8, ["-"])


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", ">&- 2>&-"])
def test_rows_for_a_standard_output_that_is_closed_go_nowhere_else(here, closed):
    command = f"{Path(sys.executable).with_name('dspy-stream')} run flow.py -q -o - {closed}"
    made = subprocess.run(["/bin/sh", "-c", command], stderr=subprocess.PIPE, timeout=60, check=False)
    assert made.returncode == 74
    assert b"2>" in closed.encode() or b"standard output: it is closed; give --output a file" in made.stderr
    files = [path for path in here.rglob("*") if path.is_file() and path.suffix != ".py"]
    assert [path for path in files if b'"number":' in path.read_bytes()] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "verb", ["run flow.py --json", "dlq list .dspy_stream/demo", "dlq export .dspy_stream/demo -"]
)
def test_a_full_standard_output_is_one_line_and_74(cli, here, verb):
    cli("run", "flow.py", "-q")
    command = f"{Path(sys.executable).with_name('dspy-stream')} {verb} > /dev/full"
    made = subprocess.run(["/bin/sh", "-c", command], stderr=subprocess.PIPE, timeout=60, check=False)
    assert made.returncode == 74
    assert b"No space left" in made.stderr
    assert made.stderr.count(b"\n") == 1, made.stderr


def test_a_run_needs_no_standard_streams(here):
    command = f"{Path(sys.executable).with_name('dspy-stream')} run flow.py --json <&- >&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", command], timeout=60, check=False).returncode == 0
    assert len((here / "out.jsonl").read_bytes().splitlines()) == 8


def test_a_format_where_no_suffix_tells_it(cli, here):
    (here / "mine.txt").write_text("question\nq1\n")
    said = cli("run", "flow.py", "-i", "mine.txt", "-q")
    assert (said.code, "--input-format" in said.err) == (74, True)
    said = cli("run", "flow.py", "-i", "mine.txt", "--input-format", "csv", "-q")
    assert (said.code, rows("out.jsonl")[0]["question"]) == (0, "q1")
    said = cli("run", "flow.py", "-i", "mine.txt", "--input-format", "cvs", "-q")
    assert (said.code, "jsonl" in said.err) == (74, True)
    said = cli("run", "flow.py", "--input-format", "csv")
    assert (said.code, "--input, which is not given" in said.err) == (78, True)


def test_a_table_on_standard_input(here):
    command = [
        Path(sys.executable).with_name("dspy-stream"),
        "run",
        "flow.py",
        "-i",
        "-",
        "--input-format",
        "csv",
    ]
    made = subprocess.run(
        [*command, "-q"], input=b"question\nq1\n", capture_output=True, timeout=60, check=False
    )
    assert (made.returncode, made.stderr) == (0, b"")
    assert rows("out.jsonl")[0]["number"] in range(7)


def test_other_places_keep_the_columns_of_the_flow(cli, here):
    code = (here / "flow.py").read_text().replace('"in.jsonl"', '"in.jsonl", id="key"')
    (here / "flow.py").write_text(code.replace('"out.jsonl"', '"out.jsonl", columns=["number"]'))
    (here / "mine.csv").write_text("key,question\nk1,q1\n")
    assert cli("run", "flow.py", "-i", "mine.csv", "-o", "mine.jsonl", "-q").code == 0
    assert [(row["row_id"], list(row)) for row in rows("mine.jsonl")] == [("k1", ["row_id", "number"])]


def test_quiet_says_why_where_all_is_not_well(cli, here):
    (here / "bad.jsonl").write_bytes(b'{"question":"bad 1"}\n')
    said = cli("run", "flow.py", "-i", "bad.jsonl", "-q")
    assert (said.code, said.out) == (65, "")
    assert said.err.count("\n") == 1
    assert "dspy-stream dlq list .dspy_stream/demo" in said.err


def test_what_an_unfinished_run_had_that_this_one_has_not_is_said_in_words(cli, here):
    said = cli("run", "flow.py", "--max-calls", "3", "--capacity", "1", "-q")
    assert said.code == 77
    said = cli("run", "flow.py", "--limit", "2", "-q")
    assert (said.code, "its source is another: limit none, not 2" in said.err) == (78, True)
    said = cli("run", "flow.py", "-o", "mine.jsonl", "-q")
    assert (said.code, "its sink is another: path out.jsonl, not mine.jsonl" in said.err) == (78, True)
    assert "{" not in said.err


def test_the_file_or_flow_that_was_probably_meant_is_named(cli, here):
    said = cli("run", "flwo.py")
    assert (said.code, "there is no such file; did you mean flow.py?" in said.err) == (78, True)
    said = cli("run", "flow.py:flwo")
    assert (said.code, "dspy-stream run flow.py:flow" in said.err) == (78, True)
    (here / "folder").mkdir()
    assert "this is a folder" in cli("run", "folder").err
    (here / "none.py").write_text("import dspy_stream\n")
    assert "nor any other stream or flow" in cli("run", "none.py").err


def test_an_outage_says_that_the_run_goes_on(cli, here, monkeypatch):
    down = "def answer(request):\n    raise ds.errors.LMUnavailableError('down')\n\n\ndef unused(request):"
    code = (here / "flow.py").read_text().replace("def answer(request):", down)
    (here / "flow.py").write_text(f"import dspy_stream.errors\n{code}")
    monkeypatch.setattr("dspy_stream.stream.outage.Outage.spent", lambda self, error, now: True)
    said = cli("run", "flow.py", "-q")
    assert (said.code, "run again to go on" in said.err) == (69, True)


def test_limit_capacity_and_workers(cli, here):
    assert cli("run", "flow.py", "--limit", "2", "--json").json()["rows_in"] == 2
    assert (
        cli("run", "flow.py", "--capacity", "1", "--workers", "2", "--fresh", "--json").json()["rows_out"]
        == 8
    )


def test_a_stream_without_an_end_is_run_too(cli, here):
    (here / "bare.py").write_text(
        "import dspy_stream as ds\nflow = ds.Stream.read('in.jsonl').map(lambda row: row)\n"
    )
    said = cli("run", "bare.py", "--json")
    assert (said.json()["flow"], said.json()["rows_out"]) == ("bare", 10)
    assert (here / ".dspy_stream" / "bare").is_dir(), "it is named after its file"


def test_a_model_by_name(cli, here):
    (here / "near.py").write_text(
        "import dspy_stream as ds\np = ds.Predict('question -> answer')\n"
        "p.demos = [{'question': 'q1', 'answer': 'one'}]\n"
        "flow = ds.Stream.read('in.jsonl', name='near').through(p).write('near.jsonl')\n"
    )
    said = cli("run", "near.py", "--json")
    assert said.code == 78
    assert "local/nearest" in said.err
    assert cli("run", "near.py", "--lm", "local/nearest", "--json").json()["rows_out"] == 10


class TestExitCodes:
    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (("run",), 2, "Missing argument"),
            (("run", "flow.py", "--capacity", "0"), 2, "--capacity"),
            (("run", "flow.py", "--no-such"), 2, "No such option"),
            (("walk",), 2, "No such command"),
            (("run", "nothing.py"), 78, "nothing.py: give a Python file"),
            (("run", "flow.py:other"), 78, "defines no 'other'"),
            (("run", "flow.py:answer"), 78, "function, not a Stream or a Flow"),
            (("run", "flow.py", "-i", "nothing.jsonl"), 74, "nothing.jsonl"),
            (("run", "flow.py", "-i", "flow.py"), 74, "cannot tell the format of flow.py"),
            (("run", "flow.py", "--lm", "nobody/model"), 78, "nobody"),
            (("run", "flow.py", "--api-base", "http://127.0.0.1:1"), 78, "--api-base needs --lm"),
            (("dlq", "list", "nowhere"), 74, "nowhere"),
            (("state", "inspect", "nowhere"), 74, "nowhere"),
        ],
    )
    def test_say_what_kind_of_failure_it_was(self, cli, here, arguments, code, words):
        said = cli(*arguments)
        assert (said.code, words in " ".join(said.err.split())) == (code, True), said.err
        assert "Traceback" not in said.err

    def test_an_error_is_one_line(self, cli, here):
        said = cli("run", "nothing.py")
        assert said.err.startswith("dspy-stream: nothing.py")
        assert said.err.count("\n") == 1

    def test_74_where_the_output_cannot_be_written(self, cli, here):
        said = cli("run", "flow.py", "-o", "in.jsonl/x.jsonl")
        assert said.code == 74

    def test_78_where_the_output_belongs_to_somebody_else(self, cli, here):
        (here / "out.jsonl").write_text("precious\n")
        said = cli("run", "flow.py")
        assert said.code == 78
        assert "--fresh" in said.err
        assert (here / "out.jsonl").read_text() == "precious\n"
        assert cli("run", "flow.py", "--fresh").code == 0

    def test_65_says_what_to_do(self, cli, here):
        said = cli("run", "flow.py", "--max-consecutive", "1")
        assert said.code == 65
        last = said.err.splitlines()[-1]
        assert last.startswith("dspy-stream: 1 rows failed one after the other in 01_")

    def test_65_goes_on_once_the_cause_is_mended(self, cli, here):
        assert cli("run", "flow.py", "--max-consecutive", "1").code == 65
        said = cli("run", "flow.py", "--json")
        assert (said.code, said.json()["resumed"], said.json()["rows_out"]) == (0, True, 8)

    def test_75_while_another_process_has_the_state(self, cli, here):
        cli("run", "flow.py", "--state", "s")
        code = "import sys; from dspy_stream.state.store import Store\n"
        code += "with Store.open('s'): print('open', flush=True); sys.stdin.read()"
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout.readline() == b"open\n"
            said = cli("run", "flow.py", "--state", "s")
            beside = cli("dlq", "list", "s", "--json")
            looked = cli("state", "inspect", "s", "--json")
        assert said.code == 75
        assert "in use" in said.err or "another process" in said.err
        assert (beside.code, beside.out.count("\n")) == (0, 2), (
            "dead letters can be read beside a running flow"
        )
        assert looked.code == 0

    def test_78_for_a_file_that_everybody_may_write(self, cli, here):
        (here / "flow.py").chmod(0o666)
        said = cli("run", "flow.py")
        assert said.code == 78
        assert "can be written by everybody" in said.err
        assert not (here / "out.jsonl").exists()

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("x = 1\n1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
            ("flow = (\n", "line 1: '(' was never closed"),
            ("import nothing_of_this_name\n", "line 1: ModuleNotFoundError"),
        ],
    )
    def test_an_error_in_the_file_is_told_by_its_line(self, cli, here, text, told):
        (here / "broken.py").write_text(text)
        said = cli("run", "broken.py")
        assert said.code == 78
        assert f"broken.py cannot be run: {told}" in said.err


def test_version_and_help(cli):
    said = cli("--version")
    assert (said.code, said.out) == (0, dspy_stream.__version__ + "\n")
    for arguments in (("--help",), ("run", "--help"), ("dlq", "retry", "--help"), ("state", "gc", "--help")):
        said = cli(*arguments)
        assert said.code == 0
        assert "Usage" in said.out


def test_nothing_given_shows_the_help(cli):
    said = cli()
    assert "Usage" in said.out + said.err


def test_a_program_that_was_edited_is_not_resumed_unasked(cli, here):
    assert cli("run", "flow.py", "--max-consecutive", "1").code == 65
    (here / "flow.py").write_text(
        (here / "flow.py").read_text().replace("-> number: int", "-> number: int, x: str")
    )
    said = cli("run", "flow.py")
    assert said.code == 78
    assert "--accept-program-change" in said.err


def test_in_a_process_of_its_own(here):
    """The console script, its channels, and no warning from anywhere."""
    made = subprocess.run(
        [Path(sys.executable).with_name("dspy-stream"), "run", "flow.py", "--json"],
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert (made.returncode, made.stderr) == (0, b"")
    assert orjson.loads(made.stdout)["rows_out"] == 8


def test_a_reader_that_goes_away_ends_it_quietly(here):
    (here / "many.jsonl").write_bytes(b'{"question":"q"}\n' * 20000)
    command = f"{Path(sys.executable).with_name('dspy-stream')} run healthy.py -i many.jsonl -o - | head -n 1"
    made = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, timeout=60, check=False
    )
    assert made.stdout.count(b"\n") == 1
    assert b"Traceback" not in made.stderr
    assert made.returncode in (74, 141)


def test_bytewaxs_own_runner_runs_the_banking_flow(tmp_path):
    made = subprocess.run(
        [sys.executable, "-m", "bytewax.run", "flows.banking"],
        cwd=tmp_path,
        capture_output=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert made.returncode == 0, made.stderr.decode()
    found = rows(tmp_path / "out" / "banking.jsonl")
    assert len(found) == len(rows(ROOT / "datasets" / "bank_messages" / "test.jsonl"))
    assert all(row["intent"] for row in found)
    assert (tmp_path / ".dspy_stream" / "banking").is_dir()


def test_and_so_does_ours(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = cli("run", ROOT / "flows" / "banking.py", "--json")
    assert said.code == 0
    assert said.json()["measures"]["accuracy"] > 0.5


def test_the_help_of_a_narrow_terminal_cuts_no_option(cli, monkeypatch):
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    said = cli("run", "--help").out
    assert "--accept-program-change" in said
    assert "…" not in said


def test_a_run_into_another_file_says_whose_dead_letters_it_replaces(cli, here, caplog):
    flow = (here / "flow.py").read_text().replace('"out.jsonl"', '"out.jsonl", dead_letters="dead.jsonl"')
    (here / "flow.py").write_text(flow)
    cli("run", "flow.py", "-q")
    assert not caplog.messages
    cli("run", "flow.py", "-q", "--limit", "5", "-o", "try.jsonl")
    (said,) = caplog.messages
    assert said.startswith("dead.jsonl: the 2 dead letters of run")
    assert said.endswith("will be replaced; the state folder keeps them")
