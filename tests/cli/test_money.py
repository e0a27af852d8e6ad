"""Budgets, prices and dry runs on the command line."""

import orjson
import pytest

from dspy_stream.cli.money import cost_of, dollars

FLOW = """
import dspy_stream as ds
from dspy_stream.types import Choice, Response, Usage


def answer(request):
    reply = "[[ ## reasoning ## ]]\\nso\\n\\n[[ ## answer ## ]]\\nyes"
    return Response((Choice(reply, "stop"),), Usage(90, 10, 0.01))


flow = (
    ds.Stream.read("in.jsonl", name="money")
    .through(ds.Predict("question -> answer"), name="ask")
    .through(ds.ChainOfThought("question -> answer"), name="think")
    .using(lm=ds.ScriptedLM(answer, cache=True, model="openai/gpt-4o-mini"))
    .write("out.jsonl")
)
"""


@pytest.fixture
def money(here):
    (here / "money.py").write_text(FLOW)
    return here


class TestBudget:
    def test_stops_with_its_own_code_and_goes_on(self, cli, money):
        said = cli("run", "money.py", "--max-calls", "5", "--capacity", "1")
        assert said.code == 77
        words = " ".join(said.err.split())
        assert "money: stopped, its budget used up" in words
        assert "of at most 5 calls (max_calls), 5 calls are spent" in words
        assert "--max-calls" in words
        assert "Traceback" not in said.err
        said = cli("run", "money.py", "--max-calls", "100")
        assert (said.code, "finished (resumed)" in said.err) == (0, True)
        assert len((money / "out.jsonl").read_bytes().splitlines()) == 10

    def test_json_still_has_its_object(self, cli, money):
        said = cli("run", "money.py", "--max-calls", "5", "--json")
        assert said.code == 77
        report = said.json()
        assert (report["status"], report["reason"], report["calls"]) == ("stopped", "budget", 5)
        assert "budget is used up" in said.err

    @pytest.mark.parametrize("limit", [("--max-cost", "0.05"), ("--max-tokens", "1000")])
    def test_by_dollars_and_tokens(self, cli, money, limit):
        assert cli("run", "money.py", *limit).code == 77

    @pytest.mark.parametrize("limit", [("--max-cost", "-1"), ("--max-calls", "many")])
    def test_a_limit_is_a_number(self, cli, money, limit):
        assert cli("run", "money.py", *limit).code == 2


class TestPrices:
    def test_from_a_file(self, cli, money):
        (money / "prices.json").write_bytes(
            orjson.dumps({"openai/gpt-4o-mini": {"prompt": 1000.0, "completion": 1000.0}})
        )
        cheap = cli("run", "money.py", "--dry-run", "--json").json()
        dear = cli("run", "money.py", "--dry-run", "--prices", "prices.json", "--json").json()
        assert dear["cost"]["expected"] > 100 * cheap["cost"]["expected"]

    def test_a_wrong_file_is_told(self, cli, money):
        (money / "prices.json").write_text('{"m": {"prompt": "free"}}')
        said = cli("run", "money.py", "--prices", "prices.json")
        assert (said.code, "prices.json: m: 'completion' is missing" in said.err) == (78, True)
        said = cli("run", "money.py", "--prices", "none.json")
        assert (said.code, "none.json" in said.err) == (78, True)


class TestSummary:
    def test_has_a_table_where_there_are_several_steps(self, cli, money):
        said = cli("run", "money.py")
        assert "01_ask" in said.err
        assert "02_think" in said.err
        assert "$0.2000" in said.err

    def test_an_unknown_cost_is_never_shown_as_nothing(self, cli, money):
        (money / "money.py").write_text(
            (money / "money.py").read_text().replace("Usage(90, 10, 0.01)", "Usage(90, 10)")
        )
        said = cli("run", "money.py")
        assert "unknown for all 20 calls" in " ".join(said.err.split())
        assert "$0" not in said.err

    def test_partly_known(self):
        assert cost_of(1.5, 10, 4) == "$1.5000 for 4 of 10 calls, unknown for the others"
        assert cost_of(1.5, 4, 4) == "$1.5000"
        assert cost_of(None, 4, 0) == "unknown for all 4 calls"
        assert (dollars(0.00012), dollars(1234.5)) == ("$0.0001", "$1,234.50")


class TestDryRun:
    def test_prints_a_table_and_leaves_nothing(self, cli, money):
        before = sorted(path.name for path in money.iterdir())
        said = cli("run", "money.py", "--dry-run", "--sample", "3")
        assert said.code == 0
        words = " ".join(said.out.split())
        assert "money: 10 rows (counted), 3 of them looked at; nothing was called or written" in words
        for word in ("01_ask", "02_think", "openai/gpt-4o-mini", "likely range", "assumed", "all"):
            assert word in words
        left = {path.name for path in money.iterdir()} - {"__pycache__"}
        assert left == set(before) - {"__pycache__"}

    def test_as_json(self, cli, money):
        found = cli("run", "money.py", "--dry-run", "--json").json()
        assert (found["rows"], found["calls"], found["from_journal"]) == (10, 20, 0)
        assert [step["step"] for step in found["steps"]] == ["01_ask", "02_think"]
        assert found["cost"]["low"] < found["cost"]["expected"] < found["cost"]["high"]

    def test_of_another_model_without_its_key(self, cli, money, monkeypatch):
        monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
        said = cli("run", "money.py", "--dry-run", "--lm", "openai/gpt-4o", "--input", "in.jsonl")
        assert (said.code, "openai/gpt-4o" in said.out) == (0, True)
