"""Incarnations: one integer that orders everything a node ever says about itself.

An incarnation is ``life << 16 | refutations``.  *life* is fixed when a process starts: seconds since the epoch,
but always above the last one that the data directory stored, so that a clock set back cannot break the order.
*refutations* counts how often this process had to contradict a suspicion (SWIM, Das et al. 2002, section 4.2).
A restart therefore always beats whatever was said about the process before it, and a refutation beats the
suspicion that it answers; comparing two integers is all it takes.  The value stays below 2**53, so JSON and
every other language read it exactly.

Deviation from SWIM, where a restarted process starts again from 0 and must first outbid its own obituary: here
the life is durable *before* the process says anything, so a refutation needs no disk write, and a slow disk
can never make a healthy node miss the time it has to refute.

Only the node itself raises its incarnation, so an accusation that cites a *higher* one than its owner has is
false.  The owner jumps above it anyway (whoever believed it must see a higher value), but at most
:data:`REFUTATION_JUMP_MAX` at once: otherwise one crafted claim could use up all 65,535 refutations of a life.
"""

# core: no I/O

from __future__ import annotations

from typing import Final

REFUTATION_BITS: Final = 16
REFUTATIONS_MAX: Final = (1 << REFUTATION_BITS) - 1
INCARNATION_MAX: Final = (1 << 53) - 1
LIFE_MAX: Final = INCARNATION_MAX >> REFUTATION_BITS

#: How far one claim that somebody else passed on may raise the refutations of a life that we already know.
REFUTATION_JUMP_MAX: Final = 1024


def make_incarnation(life: int, refutations: int = 0) -> int:
    """The incarnation of a process that started as ``life`` and has refuted ``refutations`` times.

    Raises:
        ValueError: Either part is out of range.
    """
    if not 0 <= life <= LIFE_MAX:
        raise ValueError(f"life {life} is not within 0 to {LIFE_MAX}")
    if not 0 <= refutations <= REFUTATIONS_MAX:
        raise ValueError(f"{refutations} refutations are not within 0 to {REFUTATIONS_MAX}")
    return life << REFUTATION_BITS | refutations


def life_of(incarnation: int) -> int:
    """Which process: what deduplication and clocks above this layer key on."""
    return incarnation >> REFUTATION_BITS


def refutations_of(incarnation: int) -> int:
    """How often that process had refuted a suspicion."""
    return incarnation & REFUTATIONS_MAX


def is_plausible(known: int, claimed: int) -> bool:
    """Whether hearsay may move a node from ``known`` to ``claimed``.

    A new life may start anywhere; within a life the refutations grow one by one, and a jump beyond
    :data:`REFUTATION_JUMP_MAX` is more than any real silence can hide.
    """
    return life_of(claimed) != life_of(known) or claimed - known <= REFUTATION_JUMP_MAX


def refute(own: int, accused: int) -> int | None:
    """The incarnation that contradicts an accusation of ``accused`` against the owner of ``own``.

    Args:
        own: The owner's incarnation.
        accused: The one that the accusation cites; same life, at least ``own``.

    Returns:
        The next incarnation, or ``None`` when this life has no refutations left: only a restart helps.
    """
    base = max(own, accused)
    return None if refutations_of(base) == REFUTATIONS_MAX else base + 1
