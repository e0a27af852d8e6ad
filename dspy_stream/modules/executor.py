"""ParallelExecutor: a function over data, many rows at the same time, under DSPy's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dspy_stream.modules.parallel import Parallel

__all__ = ["ParallelExecutor"]


class ParallelExecutor:
    """Calls a function with every item, as :class:`Parallel` calls modules with examples.

    ``failed_indices`` and ``exceptions_map`` are those of the last :meth:`execute`.

    >>> ParallelExecutor(num_threads=2, disable_progress_bar=True).execute(str.upper, ["a", "b"])
    ['A', 'B']
    """

    def __init__(
        self,
        num_threads: int | None = None,
        max_errors: int | None = None,
        disable_progress_bar: bool = False,
        provide_traceback: bool | None = None,
        compare_results: bool = False,  # noqa: ARG002 - says how DSPy's progress bar counts
        timeout: float = 120,
        straggler_limit: int = 3,
    ) -> None:
        self._parallel = Parallel(
            num_threads,
            max_errors,
            return_failed_examples=True,
            provide_traceback=provide_traceback,
            disable_progress_bar=disable_progress_bar,
            timeout=timeout,
            straggler_limit=straggler_limit,
        )
        self.failed_indices: list[int] = []
        self.exceptions_map: dict[int, Exception] = {}

    def execute(self, function: Callable[[Any], Any], data: Iterable[Any]) -> list[Any]:
        """The results in the order of the data, None for an item that failed; blocks until all have ended.

        Raises:
            ParallelFailed: ``max_errors`` items failed.
        """
        failures: dict[int, Exception] = {}

        def one(index: int, item: Any) -> Any:
            try:
                return function(item)
            except Exception as error:
                failures[index] = error
                raise

        try:
            found = self._parallel([(one, pair) for pair in enumerate(data)])
            results: list[Any] = found[0]
            return results
        finally:
            self.exceptions_map = dict(sorted(failures.items()))
            self.failed_indices = list(self.exceptions_map)
