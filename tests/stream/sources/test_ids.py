"""One id, two rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.rows import DeadLetter, Origin, Row
from dspy_stream.stream.sources import check_ids, payload_digest
from dspy_stream.stream.sources.ids import RecentIds


def row(row_id: str, offset: int = 0, **fields: object) -> Row:
    return Row(row_id, fields, Origin("m", "0", offset))


class Known(dict[str, bytes]):
    """What a store would remember."""

    calls = 0

    def seen(self, ids: object) -> dict[str, bytes]:
        assert isinstance(ids, list)
        return {i: self[i] for i in ids if i in self}

    def remember(self, new: object) -> None:
        assert isinstance(new, dict)
        self.calls += 1
        self.update(new)


def kinds(records: list[Row | DeadLetter]) -> str:
    return "".join("R" if isinstance(record, Row) else "D" for record in records)


def test_same_payload_passes_and_another_is_a_conflict() -> None:
    known = Known()
    batch = [row("1", 0, a=1), row("2", 1, a=2), row("1", 2, a=1), row("1", 3, a=9)]
    checked = check_ids(batch, known.seen, known.remember)
    assert kinds(checked) == "RRRD"
    letter = checked[3]
    assert isinstance(letter, DeadLetter)
    assert (letter.row_id, letter.stage, letter.error["code"]) == ("1", "check", "id_conflict")
    assert letter.raw == b'{"a":9}'
    assert "'1'" in letter.error["message"]
    assert kinds(check_ids([row("2", 4, a=0)], known.seen, known.remember)) == "D"
    assert known == {"1": payload_digest(batch[0]), "2": payload_digest(batch[1])}


def test_reading_again_after_a_crash_changes_nothing() -> None:
    known = Known()
    batch = [row("1", a=1), row("2", a=2)]
    assert kinds(check_ids(batch, known.seen, known.remember)) == "RR"
    assert kinds(check_ids(batch, known.seen, known.remember)) == "RR"
    assert known.calls == 1


def test_dead_letters_pass() -> None:
    letter = DeadLetter("1", Origin("m", "0", 0), b"x", "read", {"code": "c", "type": "t", "message": "m"})
    known = Known()
    assert check_ids([letter, row("1", a=1)], known.seen, known.remember)[0] is letter
    assert kinds(check_ids([], known.seen, known.remember)) == ""


def test_the_order_of_fields_does_not_matter() -> None:
    assert payload_digest(row("1", a=1, b=[2])) == payload_digest(row("2", b=[2], a=1))
    assert payload_digest(row("1", a=1)) != payload_digest(row("1", a="1"))


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 1)), max_size=20), st.integers(1, 20))
def test_batches_do_not_matter(rows: list[tuple[str, int]], size: int) -> None:
    records: list[Row | DeadLetter] = [row(i, n, v=v) for n, (i, v) in enumerate(rows)]
    one, many = Known(), Known()
    whole = check_ids(records, one.seen, one.remember)
    parts: list[Row | DeadLetter] = []
    for at in range(0, len(records), size):
        parts += check_ids(records[at : at + size], many.seen, many.remember)
    assert (whole, dict(one)) == (parts, dict(many))
    first = dict(reversed(rows))
    assert kinds(whole) == "".join("R" if first[i] == v else "D" for i, v in rows)


def test_recent_ids_are_bounded() -> None:
    recent = RecentIds(most=3)

    def read(name: str, text: str) -> str:
        (made,) = recent.check([Row(name, {"text": text}, Origin("m", "0", 0))])
        return type(made).__name__

    assert [read(name, "x") for name in "abc"] == ["Row"] * 3
    assert read("a", "y") == "DeadLetter"
    assert read("d", "x") == "Row"
    assert read("a", "y") == "Row", "it was forgotten"
    assert read("d", "y") == "DeadLetter"
