"""Ensemble: several programs asked the same, their answers reduced to one."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from typing import Any

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.module import Module
from dspy_stream.modules.scope import TICKET
from dspy_stream.modules.settled import settled
from dspy_stream.modules.together import Branch
from dspy_stream.program.jsonable import canonical, to_jsonable
from dspy_stream.runtime import bridge

__all__ = ["Ensemble", "EnsembledProgram"]

Reduce = Callable[[list[Any]], Any]
"""The programs' predictions, in their order, to one; ``majority`` is the usual one."""


class Ensemble:
    """Make one program of several: ``Ensemble(reduce_fn=majority).compile([a, b, c])``.

    Args:
        reduce_fn: makes one prediction of all; without it a call returns their list.
        size: how many of the programs a call asks, drawn at random; all without.
        deterministic: draw them by the inputs, the same for the same inputs in every process.

    >>> from dspy_stream.modules.format import Format
    >>> from dspy_stream.modules.majority import majority
    >>> votes = [Format("{x}"), Format("{x}!"), Format("no")]
    >>> Ensemble(reduce_fn=majority).compile(votes)(x="yes").text
    'yes'
    """

    def __init__(
        self, *, reduce_fn: Reduce | None = None, size: int | None = None, deterministic: bool = False
    ) -> None:
        if size is not None and size < 1:
            raise ConfigurationError(f"size is {size}; at least one program is asked")
        self.reduce_fn = reduce_fn
        self.size = size
        self.deterministic = deterministic

    def compile(self, programs: Sequence[Module]) -> EnsembledProgram:
        """The program that asks them.

        Raises:
            ConfigurationError: there is none, or fewer than ``size``.
        """
        least = self.size or 1
        if len(programs) < least:
            raise ConfigurationError(f"{len(programs)} programs cannot make an ensemble of {least}")
        return EnsembledProgram(
            programs, reduce_fn=self.reduce_fn, size=self.size, deterministic=self.deterministic
        )


class EnsembledProgram(Module):
    """Programs that are asked the same at the same time; made by :class:`Ensemble`.

    The first failure, in the order of the programs, is raised once all have ended. Where programs are
    drawn at random, a row of a flow that is tried again is put to the same ones.
    """

    def __init__(
        self,
        programs: Sequence[Module],
        *,
        reduce_fn: Reduce | None = None,
        size: int | None = None,
        deterministic: bool = False,
    ) -> None:
        self.programs = list(programs)
        # A judge that is a module is no part of what is learned here.
        self.reduce_fn = reduce_fn.__call__ if isinstance(reduce_fn, Module) else reduce_fn
        self.size = size
        self.deterministic = deterministic
        self._rng = random.Random()  # noqa: S311 - it draws programs, it guards nothing

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What ``reduce_fn`` makes of all predictions, or their list; blocks until all are there."""
        outer = TICKET.get()
        branches, tickets = [], []
        for number in self._drawn(args, kwargs):
            context = copy_context()
            if outer is not None:  # calls are numbered by program, in whatever order they are made
                tickets.append(outer.beside(f"/{outer.calls}.{number}"))
                context.run(TICKET.set, tickets[-1])
            branches.append(Branch(context, bridge(self.programs[number], *args, **kwargs)))
        try:
            settled(_ended(branches))
            made = [branch.result() for branch in branches]
        finally:
            for ticket in tickets:
                assert outer is not None
                outer.add(ticket)
        return made if self.reduce_fn is None else self.reduce_fn(made)

    def _drawn(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[int]:
        """The numbers of the programs that a call asks."""
        everyone = list(range(len(self.programs)))
        if self.size is None:
            return everyone
        return self._drawing(args, kwargs).sample(everyone, self.size)

    def _drawing(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> random.Random:
        if self.deterministic:
            return random.Random(_digest([list(args), dict(kwargs)]))  # noqa: S311 - as above
        ticket = TICKET.get()
        if ticket is not None and ticket.run_id:
            return random.Random(f"{ticket.run_id}/{ticket.row_id}/{ticket.step}")  # noqa: S311 - as above
        return self._rng

    def input_names(self) -> tuple[str, ...] | None:
        """Those of all programs."""
        names: dict[str, None] = {}
        for program in self.programs:
            own = program.input_names()
            if own is None:
                return None
            names.update(dict.fromkeys(own))
        return tuple(names)

    def required_names(self) -> tuple[str, ...]:
        """What any of the programs needs."""
        return tuple(dict.fromkeys(name for each in self.programs for name in each.required_names()))


async def _ended(branches: Sequence[Branch]) -> None:
    """Run branches until all have ended; begun here, in the thread in which they will go on."""
    for branch in branches:
        branch.begin()
    waiting = [branch.task() for branch in branches if branch.waits]
    try:
        await asyncio.gather(*waiting)
    finally:
        for task in waiting:
            task.cancel()


def _digest(inputs: Any) -> int:
    try:
        data = canonical(to_jsonable(inputs))
    except ConfigurationError as error:
        raise ConfigurationError(
            f"a deterministic ensemble draws programs by the inputs, and these have no JSON form: {error}"
        ) from error
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
