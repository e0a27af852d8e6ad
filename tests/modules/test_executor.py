"""ParallelExecutor."""

import pytest

from dspy_stream.modules.executor import ParallelExecutor
from dspy_stream.modules.parallel import ParallelFailed


def half(number):
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


def test_failures_are_none_and_told_by_their_place():
    executor = ParallelExecutor(num_threads=2, disable_progress_bar=True)
    assert executor.execute(half, [2, 3, 4]) == [1, None, 2]
    assert executor.failed_indices == [1]
    assert str(executor.exceptions_map[1]) == "3 is odd"
    assert executor.execute(half, [8]) == [4]
    assert executor.failed_indices == []


def test_too_many_failures_end_it():
    executor = ParallelExecutor(num_threads=1, max_errors=1, disable_progress_bar=True)
    with pytest.raises(ParallelFailed, match="cancelled due to errors"):
        executor.execute(half, [1, 2])
    assert executor.failed_indices == [0]


def test_an_item_is_one_argument_whatever_it_is():
    executor = ParallelExecutor(disable_progress_bar=True)
    assert executor.execute(len, [(1, 2), {"a": 1}, "abc"]) == [2, 1, 3]
