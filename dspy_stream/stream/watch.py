"""What a step needs of the run that it is part of."""

from __future__ import annotations

from typing import Protocol

from dspy_stream.engine import Ticket
from dspy_stream.errors import BudgetExceeded, LMError
from dspy_stream.rows import DeadLetter, Row, Stage

__all__ = ["Letters", "Watch"]


class Letters(Protocol):
    """Makes the envelopes of one flow."""

    def write(
        self, row: Row, stage: Stage, step: str, error: BaseException, *, attempts: int = 1
    ) -> DeadLetter:
        """An envelope for a row that failed."""
        ...


class Watch(Protocol):
    """Remembers, through a crash, which row's own code was running; counts what calls used."""

    def entered(self, step: str, row_id: str) -> None:
        """The row's code begins or goes on."""
        ...

    def left(self) -> None:
        """It has returned or waits."""
        ...

    def deaths(self, step: str, row_id: str) -> int:
        """How often the process ended while this row's code ran."""
        ...

    def used(self, ticket: Ticket) -> None:
        """An attempt ended; its calls are counted."""
        ...

    def replaced(self, ticket: Ticket) -> None:
        """A row passed whose earlier answers could not be read; those that it has now take their places."""
        ...

    def halt(self, error: BudgetExceeded) -> None:
        """Nothing more may be spent; the row stays where it is."""
        ...

    def attempt_failed(self, error: LMError) -> None:
        """An attempt at a call failed; it may have been charged for."""
        ...

    def tight(self) -> bool:
        """True while calls wait for what is left of a budget."""
        ...

    def troubled(self, step: str, error: LMError) -> None:
        """The model has not answered anybody for a while; the rows wait."""
        ...

    def recovered(self, step: str, seconds: float) -> None:
        """The model answers again, after so many seconds."""
        ...

    def defaulted(self, step: str, row_id: str, error: BaseException) -> None:
        """A row failed for good and goes on with the step's default outputs."""
        ...
