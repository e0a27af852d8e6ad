"""The health check: a GET that costs nothing, before an endpoint that was down is asked again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspy_stream.errors import LMError

if TYPE_CHECKING:
    from dspy_stream.lm.transport import Endpoint

__all__ = ["HealthCheck"]


class HealthCheck:
    """Ask an address of the server how it is; ``deadline`` is in seconds."""

    __slots__ = ("_deadline", "_endpoint")

    def __init__(self, endpoint: Endpoint, *, deadline: float) -> None:
        self._endpoint = endpoint
        self._deadline = deadline

    async def __call__(self) -> bool:
        """True where it answers with a status from 200 to 299 in time."""
        try:
            return 200 <= (await self._endpoint.get(deadline=self._deadline)).status < 300
        except LMError:
            return False

    async def aclose(self) -> None:
        """Let go of the connection pool."""
        await self._endpoint.aclose()
