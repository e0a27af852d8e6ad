"""configure_cache and cache: where the answers of calls outside flows are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import dspy_stream as ds
from dspy_stream.configuration import settings
from dspy_stream.lm import ScriptedLM


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = settings.journal
    yield
    ds.configure(journal=before)


def asked_twice() -> int:
    """How many calls two equal questions take, of a predictor and of the model itself."""
    lm = ScriptedLM("[[ ## answer ## ]]\n4", cache=True, model="scripted/cached")
    with ds.context(lm=lm):
        for _ in range(2):
            ds.Predict("question -> answer")(question="q")
            lm("q")
    return lm.call_count


def test_memory_keeps_answers_until_it_is_reset() -> None:
    ds.configure_cache(enable_disk_cache=False)
    assert asked_twice() == 2
    assert asked_twice() == 0
    ds.cache.reset_memory_cache()
    assert asked_twice() == 2


def test_the_memory_of_nobodys_choice_is_reset_too() -> None:
    ds.configure(journal=None)
    ds.cache.reset_memory_cache()
    assert asked_twice() == 2
    lm = ScriptedLM("a", cache=True, model="scripted/direct")
    lm("q"), lm("q")
    ds.cache.reset_memory_cache()
    lm("q")
    assert lm.call_count == 2


def test_without_any_each_call_is_made() -> None:
    ds.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    assert asked_twice() == 4


def test_a_folder_keeps_answers_and_is_opened_once(tmp_path: Path) -> None:
    ds.configure_cache(disk_cache_dir=tmp_path / "cache")
    assert asked_twice() == 2
    ds.configure_cache(enable_disk_cache=False)
    ds.configure_cache(disk_cache_dir=tmp_path / "cache", disk_size_limit_bytes=10**9, memory_max_entries=1e6)
    assert asked_twice() == 0
    assert (tmp_path / "cache").is_dir()
    settings.journal.close()


def test_a_limit_below_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="memory_max_entries is -1"):
        ds.configure_cache(memory_max_entries=-1)
