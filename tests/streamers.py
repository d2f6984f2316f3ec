"""Handlers that answer in parts, and who asks for them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import pytest
from couriers import query

from mesh import remaining_s
from mesh.messaging.courier import Courier
from mesh.messaging.replies import ReplyStream
from mesh.types import AgentMessage

#: Where an asker's agent may be: on another node, or on the asker's own.
PLACES = pytest.mark.parametrize("place", ["b", "a"])


class Counter:
    """A handler that counts up to a number, and says how far it came and how it ended."""

    def __init__(self, upto: float = math.inf, *, size: int = 1, then: Exception | None = None) -> None:
        self.upto = upto
        self.size = size
        self.then = then
        self.made = 0
        self.ended: list[str] = []

    async def __call__(self, _: AgentMessage) -> AsyncIterator[bytes]:
        try:
            while self.made < self.upto:
                self.made += 1
                yield b"%d" % self.made + bytes(self.size)
            if self.then is not None:
                raise self.then
            self.ended.append("done")
        except BaseException as error:  # closing and cancelling are what is looked at
            self.ended.append(type(error).__name__)
            raise


class Clock:
    """A handler that yields once and then waits, for whoever ends it."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.left_s: float | None = None

    async def __call__(self, _: AgentMessage) -> AsyncIterator[bytes]:
        self.left_s = remaining_s()
        try:
            yield b"tick"
            await asyncio.Event().wait()
        except BaseException as error:  # closing and cancelling are what is looked at
            self.ended.append(type(error).__name__)
            raise


def asked(courier: Courier, *, idle_s: float = 1.0, timeout_s: float = math.inf, to: int = 7) -> ReplyStream:
    """A stream of agent 7."""
    return courier.stream(query(to), idle_s=idle_s, timeout_s=timeout_s)


def numbers(parts: list[bytes]) -> list[int]:
    """What a :class:`Counter` counted."""
    return [int(part.rstrip(b"\0")) for part in parts]
