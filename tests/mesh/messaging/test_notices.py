"""What nodes say of requests and agents survives the wire, and nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.messaging.notices import (
    NOTICES_MAX,
    Credit,
    GivenUp,
    Gone,
    Handled,
    Heard,
    Notices,
    Waiting,
    decode_notices,
    encode_notices,
)
from transport.errors import RemoteProtocolError
from transport.wire import pack

COUNTS = st.integers(0, 2**63 - 1)
AGENTS = st.integers(0, 2**64 - 1)


@given(
    st.lists(st.builds(GivenUp, COUNTS, AGENTS, AGENTS), max_size=5),
    st.lists(st.builds(Credit, COUNTS, COUNTS, COUNTS), max_size=5),
)
def test_notices_survive_the_wire(given_up: list[GivenUp], credit: list[Credit]) -> None:
    """What is decoded is what was encoded."""
    assert decode_notices(encode_notices(Notices(given_up, credit))) == Notices(given_up, credit)


@given(
    st.lists(st.builds(Handled, AGENTS, COUNTS, COUNTS, COUNTS, COUNTS), max_size=3),
    st.lists(st.builds(Waiting, AGENTS, COUNTS, COUNTS), max_size=3),
    st.lists(st.builds(Gone, AGENTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS), max_size=3),
    st.lists(st.builds(Heard, AGENTS, COUNTS, st.integers(0, 3)), max_size=3),
)
def test_news_of_agents_that_move_survives_the_wire(
    handled: list[Handled], waiting: list[Waiting], gone: list[Gone], heard: list[Heard]
) -> None:
    """What is decoded is what was encoded."""
    notices = Notices([], [], tuple(handled), tuple(waiting), tuple(gone), tuple(heard))

    assert decode_notices(encode_notices(notices)) == notices


def test_fields_of_later_versions_are_ignored() -> None:
    """Behind the body's own and behind an entry's."""
    body = pack([[[1, 2, 3, "more"]], [], {"later": 1}])

    assert decode_notices(body) == Notices([GivenUp(1, 2, 3)], [])


@pytest.mark.parametrize(
    "body",
    [
        {},
        [[]],
        [{}, []],
        [[], 1],
        [[[1, 2]], []],
        [[], [5]],
        [[[1, -2, 3]], []],
        [[[1, True, 3]], []],
        [[[1, "2", 3]], []],
        [[], [[2**63, 1, 1]]],
        [[[1, 2, 3]] * (NOTICES_MAX + 1), []],
        [[], [], [[1, 2, 3, 4]], [], [], []],
        [[], [], [], [[1, 2**63, 3]], [], []],
        [[], [], [], [], [[1, 1, 0, 0, 0]], []],
        [[], [], [], [], [], [[1, 1, 4]]],
    ],
)
def test_nonsense_is_refused(body: object) -> None:
    """As the peer's fault, whatever is wrong with it."""
    with pytest.raises(RemoteProtocolError, match="calls body"):
        decode_notices(pack(body))
