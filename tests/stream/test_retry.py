"""Dead letters once more: into the same output, exactly once, with answers of their own."""

import csv

import orjson
import pytest

from dspy_stream.errors import FlowError, LMAuthError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Predict
from dspy_stream.state.dead_letters import DeadLetterBox
from dspy_stream.state.store import Store
from dspy_stream.stream import Stream
from dspy_stream.stream.retry import LetterSource, last_model, retry_letters
from dspy_stream.stream.sinks import MemorySink


def asked(request):
    return request.tail[0].content.split("[[ ## question ## ]]\n")[1].split("\n")[0]


def model(bad=()):
    """Answers every question but these."""
    return ScriptedLM(lambda request: "no number" if asked(request) in bad else {"number": 1}, cache=True)


BAD = ("q1", "q5", "q8")


class Here:
    def __init__(self, path, suffix=".jsonl"):
        self.state = path / "state"
        self.out = path / f"out{suffix}"
        (path / "in.jsonl").write_bytes(b"".join(b'{"question":"q%d"}\n' % number for number in range(10)))
        stream = Stream.read(path / "in.jsonl", name="qa").through(
            Predict("question -> number: int"), name="ask"
        )
        self.flow = stream.limit_failures(consecutive=None, ratio=None).write(self.out)

    def run(self, bad=BAD):
        return self.flow.run(state=self.state, lm=model(bad), quiet=True)

    def retry(self, lm, **options):
        return retry_letters(self.flow, self.state, lm=lm, quiet=True, **options)

    def rows(self):
        return [orjson.loads(line) for line in self.out.read_bytes().splitlines()]

    def questions(self):
        return sorted(row["question"] for row in self.rows())

    def letters(self, **options):
        with Store.open(self.state, read_only=True) as store:
            return DeadLetterBox(store).list(None, None, **options)


@pytest.fixture
def here(tmp_path):
    made = Here(tmp_path)
    report = made.run()
    assert (report.rows_out, report.dead_letters) == (7, 3)
    return made


def test_rows_that_pass_are_added_to_the_output_once_and_their_letters_resolved(here):
    before = here.out.read_bytes()
    ids = {filed.letter.row_id for filed in here.letters()}
    report = here.retry(model())
    assert (report.rows_in, report.rows_out, report.dead_letters) == (3, 3, 0)
    assert here.out.read_bytes().startswith(before)
    assert here.questions() == sorted(f"q{number}" for number in range(10))
    assert {row["row_id"] for row in here.rows()[7:]} == ids
    assert here.letters() == []
    assert len(here.letters(resolved=True)) == 3


def test_the_model_is_asked_anew_though_the_journal_knows_the_old_answer(here):
    lm = model()
    here.retry(lm)
    assert sorted(map(asked, lm.calls)) == sorted(BAD)
    assert all(request.rollout_id is not None for request in lm.calls)


def test_rows_that_fail_again_get_a_new_letter_and_may_be_retried_again(here):
    report = here.retry(model(bad=("q5",)))
    assert (report.rows_out, report.dead_letters) == (2, 1)
    (left,) = here.letters()
    assert orjson.loads(left.letter.raw) == {"question": "q5"}
    assert len(here.rows()) == 9
    lm = model()
    again = here.retry(lm)
    assert (again.rows_out, lm.call_count) == (1, 1), "the answer of the first retry is not given again"
    assert here.questions() == sorted(f"q{number}" for number in range(10))
    assert here.letters() == []


def test_a_later_run_has_the_rows_that_a_retry_brought_and_pays_nothing(here):
    here.retry(model(bad=("q5",)))
    here.retry(model())
    rows = sorted(here.rows(), key=lambda row: row["question"])
    lm = model()
    report = here.flow.run(state=here.state, lm=lm, quiet=True)
    assert (report.rows_out, report.dead_letters, lm.call_count) == (10, 0, 0)
    assert sorted(here.rows(), key=lambda row: row["question"]) == rows


@pytest.mark.parametrize("isolation", ["inline", "process"])
def test_of_a_program_only_what_could_not_be_read_is_asked_again(tmp_path, isolation):
    """Two questions that do not need each other, both without an answer; one that has its own."""
    (tmp_path / "in.jsonl").write_bytes(b'{"question":"q0"}\n')
    program = (
        Predict("question -> first: int")
        | Predict("question -> second: int")
        | Predict("question -> third: int")
    )
    flow = Stream.read(tmp_path / "in.jsonl", name="qa").through(program, isolation=isolation)
    flow = flow.limit_failures(consecutive=None, ratio=None).write(tmp_path / "out.jsonl")

    def answering(*bad):
        return ScriptedLM(
            lambda request: (
                "no number"
                if any(f"[[ ## {name} ## ]]" in request.head.messages[0].content for name in bad)
                else {"first": 1, "second": 2, "third": 3}
            ),
            cache=True,
        )

    flow.run(state=tmp_path / "s", lm=answering("second"), quiet=True)
    lm = answering()
    report = retry_letters(flow, tmp_path / "s", lm=lm, quiet=True)
    assert (report.rows_out, report.calls) == (1, 2), "the second question, and the third for the first time"
    again = answering("first", "second", "third")
    assert flow.run(state=tmp_path / "s", lm=again, quiet=True).rows_out == 1
    assert again.call_count == 0


def test_nothing_to_retry_is_said(here):
    here.retry(model())
    with pytest.raises(FlowError, match="no open dead letters"):
        here.retry(model())


def test_chosen_letters_only(here):
    ref = here.letters()[0].ref
    report = here.retry(model(), refs=[ref])
    assert report.rows_out == 1
    assert len(here.letters()) == 2
    with pytest.raises(FlowError, match="no open dead letter"):
        here.retry(model(), refs=[ref])


def test_letters_that_a_retry_was_not_asked_for_stay_open(here):
    here.retry(model(bad=BAD))
    first, *others = here.letters()
    assert len(others) == 2
    assert here.retry(model(), refs=[first.ref]).rows_out == 1
    assert [filed.ref for filed in here.letters()] == [filed.ref for filed in others]
    assert here.retry(model()).rows_out == 2
    assert here.questions() == sorted(f"q{number}" for number in range(10))


def test_a_run_that_writes_the_output_anew_closes_the_letters_of_retries_too(here):
    here.retry(model(bad=BAD))
    here.flow.run(state=here.state, lm=model(BAD), quiet=True, fresh=True)
    assert len(here.letters()) == 3
    assert {filed.letter.flow for filed in here.letters()} == {"qa"}


def test_by_stage_and_code(here):
    with pytest.raises(FlowError, match="no open dead letters"):
        here.retry(model(), stage="call")
    assert here.retry(model(), stage="parse", code="parse").rows_out == 3


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_retry_that_broke_off_goes_on_and_doubles_nothing(here, call):
    calls = []

    def answer(request):
        calls.append(1)
        return LMAuthError("revoked") if len(calls) >= call else {"number": 1}

    with pytest.raises(LMAuthError):
        here.retry(ScriptedLM(answer, cache=True), capacity=1, epoch=0.0)
    lm = model()
    report = here.retry(lm)
    assert report.resumed
    assert here.questions() == sorted(f"q{number}" for number in range(10))
    assert here.letters() == []
    assert lm.call_count == 4 - call, "what was paid before the break is in the journal"


def test_one_that_ended_before_its_letters_were_resolved_does_not_run_twice(here, monkeypatch):
    from dspy_stream.stream import retry

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(retry._Plan, "settle", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        here.retry(model())
    with pytest.raises(FlowError, match="no open dead letters"):
        here.retry(model())
    assert len(here.rows()) == 10
    assert here.letters() == []


def test_one_whose_plan_is_lost_is_not_begun_again(here):
    lm = ScriptedLM([{"number": 1}, LMAuthError("revoked"), LMAuthError("revoked")])
    with pytest.raises(LMAuthError):
        here.retry(lm, capacity=1, epoch=0.0)
    with Store.open(here.state) as store:
        store.delete_prefix("meta", b"retry/")
    with pytest.raises(FlowError, match=r"what it was to retry is lost.*Run the flow again first"):
        here.retry(model())
    here.run()
    here.retry(model())
    assert here.questions() == sorted(f"q{number}" for number in range(10))
    assert here.letters() == []


def test_letters_of_another_flow_in_the_folder_are_not_its_own(here, tmp_path):
    other = Stream.read(tmp_path / "in.jsonl", name="other").through(Predict("question -> size: int"))
    lm = ScriptedLM(lambda request: "none" if asked(request) == "q4" else {"size": 1})
    other.write(tmp_path / "other.jsonl").run(state=here.state, lm=lm, quiet=True)
    (theirs,) = [filed.ref for filed in here.letters() if filed.letter.flow == "other"]
    with pytest.raises(FlowError, match="no open dead letter"):
        here.retry(model(), refs=[theirs])
    here.retry(model(BAD[:1]))  # one fails again, under a letter of the retry's
    here.retry(model())
    assert here.questions() == sorted(f"q{number}" for number in range(10))
    assert [filed.ref for filed in here.letters()] == [theirs]
    with pytest.raises(FlowError, match="no open dead letters of flow qa"):
        here.retry(model())


def test_the_flow_itself_goes_on_as_before(here):
    here.retry(model())
    lm = model()
    report = here.flow.run(state=here.state, lm=lm, quiet=True)
    assert report.rows_in == 10
    assert len(here.rows()) == report.rows_out


def test_while_the_flow_is_unfinished_nothing_is_retried(here, tmp_path):
    """It would cut the output back to its own commit when it goes on, and the added rows with it."""
    (tmp_path / "in.jsonl").write_bytes(b"".join(b'{"question":"r%d"}\n' % number for number in range(10)))
    calls = []

    def answer(request):
        calls.append(1)
        return LMAuthError("revoked") if len(calls) > 7 else {"number": 1}

    with pytest.raises(LMAuthError):
        here.flow.run(state=here.state, lm=ScriptedLM(answer), quiet=True, capacity=1, epoch=0.0)
    before = here.out.read_bytes()
    with pytest.raises(FlowError, match="unfinished; run the flow to its end first"):
        here.retry(model())
    assert here.out.read_bytes() == before
    assert here.flow.run(state=here.state, lm=model(), quiet=True).rows_out == 10


def test_a_plan_from_before_another_run_of_the_flow_is_dropped(here):
    with pytest.raises(LMAuthError):
        here.retry(ScriptedLM(lambda request: LMAuthError("revoked")), epoch=0.0)
    here.flow.run(state=here.state, lm=ScriptedLM({"": {"number": 1}}, cache=False), quiet=True)
    with pytest.raises(FlowError, match="no open dead letters"):
        here.retry(model())
    assert here.questions() == sorted(f"q{number}" for number in range(10))


def test_letters_of_earlier_runs_are_void_since_their_rows_were_read_again(here, tmp_path):
    old = here.letters()[0].ref
    again = Stream.read(tmp_path / "in.jsonl", name="qa").through(
        Predict("question -> number: int", n=1), name="ask"
    )
    report = again.write(here.out).run(
        state=here.state, lm=ScriptedLM({"": {"number": 1}}, model="scripted/b")
    )
    assert report.rows_out == 10
    with pytest.raises(FlowError, match="no open dead letters"):
        here.retry(model())
    with pytest.raises(FlowError, match="no open dead letter"):
        here.retry(model(), refs=[old])
    assert len(here.rows()) == 10


def test_a_csv_output(tmp_path):
    here = Here(tmp_path, ".csv")
    here.run()
    here.retry(model())
    lines = here.out.read_text().splitlines()
    assert len(lines) == 11
    assert sum(line.startswith("row_id") or ",question" in line for line in lines) == 1, "one header"


def test_an_output_that_cannot_be_added_to(here):
    flow = here.flow.writing(MemorySink())
    with pytest.raises(FlowError, match="cannot be added to"):
        retry_letters(flow, here.state, lm=model(), quiet=True)
    assert len(here.letters()) == 3


class Two:
    """A flow whose rows go to one of two outputs."""

    def __init__(self, path):
        self.state = path / "state"
        self.outs = {True: path / "even.jsonl", False: path / "odd.csv"}
        (path / "in.jsonl").write_bytes(b"".join(b'{"question":"q%d"}\n' % number for number in range(10)))
        asked = Stream.read(path / "in.jsonl", name="qa").through(
            Predict("question -> number: int"), name="ask"
        )
        asked = asked.limit_failures(consecutive=None, ratio=None)
        even, odd = asked.branch(lambda row: int(row.question[1:]) % 2 == 0)
        odd = odd.through(Predict("question, number -> check: int"), name="check")
        self.flow = even.write(self.outs[True]).also(odd.write(self.outs[False]))

    def model(self, bad=()):
        return ScriptedLM(lambda request: "no number" if asked(request) in bad else {"number": 1, "check": 2})

    def questions(self):
        even = [orjson.loads(line)["question"] for line in self.outs[True].read_bytes().splitlines()]
        odd = [row["question"] for row in csv.DictReader(self.outs[False].read_text().splitlines())]
        return sorted(even), sorted(odd)


class TestTwoOutputs:
    def test_each_row_is_added_to_its_own(self, tmp_path):
        two = Two(tmp_path)
        report = two.flow.run(state=two.state, lm=two.model(BAD), quiet=True)
        assert (report.rows_out, report.dead_letters) == (7, 3)
        retried = retry_letters(two.flow, two.state, lm=two.model(("q1",)), quiet=True)
        assert (retried.rows_out, retried.dead_letters) == (2, 1)
        assert two.questions() == (["q0", "q2", "q4", "q6", "q8"], ["q3", "q5", "q7", "q9"])
        retry_letters(two.flow, two.state, lm=two.model(), quiet=True)
        assert two.questions()[1] == ["q1", "q3", "q5", "q7", "q9"]
        with Store.open(two.state, read_only=True) as store:
            assert DeadLetterBox(store).list(None, None) == []

    def test_one_that_broke_off_goes_on_also_into_an_output_that_was_empty(self, tmp_path):
        two = Two(tmp_path)
        every = [f"q{number}" for number in range(10)]
        two.flow.run(state=two.state, lm=two.model(every), quiet=True)
        count = []

        def answer(request):
            count.append(1)
            if len(count) >= 9:
                raise LMAuthError("the key was revoked")
            return {"number": 1, "check": 2}

        with pytest.raises(LMAuthError):
            retry_letters(two.flow, two.state, lm=ScriptedLM(answer), quiet=True, capacity=1)
        two.outs[True].write_bytes(b'{"question":"written, and no epoch since"}\n')
        retry_letters(two.flow, two.state, lm=two.model(), quiet=True)
        assert two.questions() == (every[::2], every[1::2])

    def test_a_row_that_may_go_to_both_is_refused(self, here, tmp_path):
        rows = Stream.read(tmp_path / "in.jsonl", name="two")
        yes, no = rows.branch(lambda row: True)
        other, _ = no.branch(lambda row: True)
        flow = rows.write(tmp_path / "a.jsonl").also(yes.write(tmp_path / "b.jsonl"))
        with pytest.raises(
            FlowError, match=r"both .*a\.jsonl and .*b\.jsonl, which are not on opposite sides"
        ):
            retry_letters(flow, here.state)
        twice = no.write(tmp_path / "a.jsonl").also(other.write(tmp_path / "b.jsonl"))
        with pytest.raises(FlowError, match="not on opposite sides of a branch"):
            retry_letters(twice, here.state)
        nested = yes.write(tmp_path / "a.jsonl").also(other.write(tmp_path / "b.jsonl"))
        Store.open(tmp_path / "empty").close()
        with pytest.raises(FlowError, match="no open dead letters"):
            retry_letters(nested, tmp_path / "empty")


def test_bytes_that_are_no_record_stay_a_letter(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'{"question":"q0"}\nnot json\n')
    flow = Stream.read(tmp_path / "in.jsonl", name="qa").through(Predict("question -> number: int"))
    flow = flow.write(tmp_path / "out.jsonl")
    flow.run(state=tmp_path / "s", lm=model(), quiet=True)
    report = retry_letters(flow, tmp_path / "s", lm=model(), quiet=True)
    assert (report.rows_out, report.dead_letters) == (0, 1)
    with Store.open(tmp_path / "s", read_only=True) as store:
        (filed,) = DeadLetterBox(store).list(None, None)
    assert (filed.letter.raw, filed.letter.stage, filed.letter.attempts) == (b"not json", "read", 2)


def test_the_source_counts_and_resumes(here):
    source = LetterSource(here.letters())
    assert (source.size(), source.partitions()) == (3, ["letters"])
    part = source.open("letters", None)
    assert [row.question for row in part.read(2)] == ["q1", "q5"]
    again = source.open("letters", part.position())
    assert [row.question for row in again.read(10)] == ["q8"]
    assert again.exhausted


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_row_is_retried_as_it_was_read_whatever_steps_had_made_of_it(tmp_path, suffix):
    source, mended, out = tmp_path / f"in{suffix}", tmp_path / "mended", tmp_path / "out.jsonl"
    Stream.from_iterable({"question": f"q{n}", "k": n} for n in range(10)).write(source).run(
        state=None, quiet=True
    )

    def check(row):
        if row.number % 5 == 2 and not mended.exists():
            raise ValueError("not yet")
        return row

    flow = (
        Stream.read(source)
        .map(lambda row: {"number": int(row.k) + 100, "asked": row.question + "!"})
        .map(check)
        .limit_failures(consecutive=None, ratio=None)
        .write(out)
    )
    report = flow.run(state=tmp_path / "state", quiet=True)
    assert (report.rows_out, report.dead_letters) == (8, 2)
    mended.touch()
    assert retry_letters(flow, tmp_path / "state", quiet=True).rows_out == 2
    rows = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert sorted((row["number"], row["asked"]) for row in rows) == [(100 + n, f"q{n}!") for n in range(10)]


class TestOtherRowsInTheSamePlaces:
    """Ids are places: tomorrow's file has other rows under them."""

    @pytest.fixture
    def place(self, tmp_path):
        out, mended = tmp_path / "out.jsonl", tmp_path / "mended"

        def check(row):
            if row.text.startswith("bad") and not mended.exists():
                raise ValueError("a bad row")
            return row

        class Place:
            state = tmp_path / "state"
            flow = Stream.read(tmp_path / "in.jsonl", name="f").map(check).limit_failures(consecutive=None)
            flow = flow.limit_failures(ratio=None).write(out)

            def run(self, *texts, **options):
                lines = (orjson.dumps({"text": text}) + b"\n" for text in texts)
                (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
                return self.flow.run(state=self.state, quiet=True, **options)

            def open(self):
                with Store.open(self.state, read_only=True) as store:
                    return [orjson.loads(filed.letter.raw)["text"] for filed in DeadLetterBox(store).list()]

            def mend(self):
                mended.touch()

            def rows(self):
                return [orjson.loads(line) for line in out.read_bytes().splitlines()]

        return Place()

    def test_a_letter_stays_open_until_its_own_record_comes_again(self, place):
        place.run("bad invoice", "fine")
        report = place.run("lovely", "bad day")
        assert place.open() == ["bad invoice", "bad day"]
        assert report.left_open == 1
        report = place.run("bad invoice", "fine")
        assert place.open() == ["bad day", "bad invoice"], "each once"
        assert report.left_open == 1
        place.mend()
        assert place.run("bad invoice", "bad day").left_open == 0
        assert place.open() == []

    def test_a_run_over_fewer_rows_leaves_the_letters_of_the_others(self, place):
        texts = ("fine", "bad one")
        place.run(*texts)
        assert place.run(*texts, limit=1).left_open == 1
        assert place.open() == ["bad one"]

    def test_it_can_be_retried_under_an_id_of_its_own(self, place):
        place.run("bad invoice", "fine")
        place.run("lovely", "fine")
        place.mend()
        assert retry_letters(place.flow, place.state, quiet=True).rows_out == 1
        assert place.open() == []
        assert [row["text"] for row in place.rows()] == ["lovely", "fine", "bad invoice"]
        ids = [row["row_id"] for row in place.rows()]
        assert ids[2].startswith(ids[0] + "@"), "its place belongs to another row now"

    def test_what_a_run_had_read_before_it_broke_off_counts(self, place, monkeypatch):
        from dspy_stream.state.successors import Successors

        place.run("bad invoice", "fine")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
            patch.setattr(Successors, "close", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            place.run("bad invoice", "fine")
        assert place.open() == ["bad invoice"] * 2, "the run is not through yet"
        report = place.flow.run(state=place.state, quiet=True)
        assert report.resumed
        assert place.open() == ["bad invoice"]

    def test_a_run_that_was_given_up_closes_nothing(self, place, monkeypatch):
        from dspy_stream.state.successors import Successors

        place.run("bad invoice", "fine")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
            patch.setattr(Successors, "close", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            place.run("bad invoice", "fine")
        assert place.run("lovely", "fine", fresh=True).left_open == 2
        assert place.open() == ["bad invoice"] * 2


class TestAfterARunIntoAnotherFile:
    """A trial, as ``run flow.py --limit 5 --output try.jsonl`` is, leaves the flow's own letters to retry."""

    @pytest.fixture
    def tried(self, here, tmp_path):
        trial = here.flow.writing(tmp_path / "try.jsonl")
        bad = ScriptedLM(lambda request: "no number", model="scripted/trial", cache=False)
        report = trial.run(state=here.state, lm=bad, limit=5, quiet=True)
        assert report.dead_letters == 5
        return trial

    def test_the_flows_own_are_retried_and_no_row_is_doubled(self, here, tried):
        report = here.retry(model())
        assert (report.rows_in, report.rows_out) == (3, 3)
        assert here.questions() == sorted(f"q{number}" for number in range(10))
        assert len({row["row_id"] for row in here.rows()}) == 10
        assert len(here.letters()) == 5, "the trial's stay open"

    def test_the_trials_own_go_to_its_file(self, here, tried, tmp_path):
        report = retry_letters(tried, here.state, lm=model(), quiet=True)
        assert (report.rows_in, report.rows_out) == (5, 5)
        assert len((tmp_path / "try.jsonl").read_bytes().splitlines()) == 5
        assert (len(here.letters()), len(here.rows())) == (3, 7)

    def test_what_failed_again_in_one_file_is_not_taken_into_the_other(self, here, tried):
        bad = ScriptedLM(lambda request: "no number", model="scripted/trial", cache=False)
        assert retry_letters(tried, here.state, lm=bad, quiet=True).dead_letters == 5
        assert here.retry(model()).rows_in == 3

    def test_the_model_is_that_of_the_run_that_wrote_the_file(self, here, tried, tmp_path):
        other = here.flow.writing(tmp_path / "named.jsonl")
        other.run(state=here.state, lm="local/nearest", limit=0, quiet=True)
        assert last_model(other, here.state).name == "local/nearest"
        assert last_model(here.flow, here.state) is None
