"""The breaker layer: while an endpoint is down, its calls fail at once, and one a time tries it."""

from __future__ import annotations

from collections.abc import Callable

from dspy_stream.clock import Clock
from dspy_stream.errors import LMError, LMUnavailableError
from dspy_stream.lm.circuit import Circuit, speaks_of_the_server
from dspy_stream.lm.health import HealthCheck
from dspy_stream.lm.witness import ON_TRIAL
from dspy_stream.types import Layer, Request, Response

__all__ = ["Breaker", "still_allowed"]


class Breaker:
    """Make calls while the circuit is closed; count what comes of them.

    ``name`` is how errors call the model. The trial call of an open circuit goes to ``trial``, past
    the permits: those may all be held by calls that the server left hanging, and whether it fails
    says nothing of how many calls a server in health takes. With ``healthy`` it is made only where that
    check says True.

    Raises (when called):
        LMUnavailableError: the call was not made; ``retry_after`` says when to ask again.
    """

    __slots__ = ("_circuit", "_clock", "_healthy", "_inner", "_name", "_trial")

    def __init__(
        self,
        inner: Layer,
        circuit: Circuit,
        *,
        name: str,
        clock: Clock,
        trial: Layer | None = None,
        healthy: HealthCheck | None = None,
    ) -> None:
        self._inner = inner
        self._trial = trial if trial is not None else inner
        self._circuit = circuit
        self._name = name
        self._clock = clock
        self._healthy = healthy

    @property
    def circuit(self) -> Circuit:
        """The state of the endpoint."""
        return self._circuit

    async def __call__(self, request: Request) -> Response:
        """The answer, where the endpoint is asked."""
        circuit, clock = self._circuit, self._clock
        admission = circuit.admit(clock.monotonic())
        if admission is None:
            raise _refused(self._name, circuit, clock)
        closed = circuit.state == "closed"
        judged = False
        try:
            if not closed and self._healthy is not None and not await self._healthy():
                circuit.postponed(admission, clock.monotonic())
                raise _refused(self._name, circuit, clock)
            response = await (self._inner if closed else self._trial)(request)
            judged = True
        except LMError as error:
            judged = self._judge(admission, error)
            raise
        finally:
            if not judged:  # given up from outside, or not made after all
                circuit.released(admission, clock.monotonic())
        circuit.succeeded(admission, clock.monotonic())
        return response

    def _judge(self, admission: int, error: LMError) -> bool:
        now = self._clock.monotonic()
        if speaks_of_the_server(error):
            if self._circuit.state == "closed" and ON_TRIAL.get():
                return False  # rows that always fail would open it for all others
            self._circuit.failed(admission, now, error.message, error.retry_after)
            return True
        if error.status is not None:  # it refuses this request, so it is there
            self._circuit.succeeded(admission, now)
            return True
        return False

    async def aclose(self) -> None:
        """Close the layer below, and the check's own connection."""
        await self._inner.aclose()
        if self._healthy is not None:
            await self._healthy.aclose()


def still_allowed(circuit: Circuit, *, name: str, clock: Clock) -> Callable[[], None]:
    """What is asked for a call that was admitted, then waited for a permit: has the circuit opened meanwhile?

    Raises (when called):
        LMUnavailableError: the endpoint went down meanwhile.
    """

    def check() -> None:
        if circuit.state != "closed":
            raise _refused(name, circuit, clock)

    return check


def _refused(name: str, circuit: Circuit, clock: Clock) -> LMUnavailableError:
    wait = circuit.wait(clock.monotonic())
    return LMUnavailableError(
        f"{name} is not asked for another {wait:.1f} s, because it has failed too often just now "
        f"({circuit.reason})",
        model=name,
        retry_after=wait,
    )
