"""A link lives no longer than the certificate that opened it; whoever has renewed notices nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import identities
import pytest
from hostile_nodes import join
from links import WebSocketBed
from support import eventually

import mesh.runtime
from mesh.events import NodeFailed, NodeSuspected
from mesh.renewal import Renewal
from transport.errors import DialError
from transport.identity.credentials import Credentials, obtain_credentials
from transport.identity.datadir import NodeDirectory
from transport.link import CloseReason


async def test_a_link_ends_with_the_certificate_that_opened_it(tmp_path: Path) -> None:
    """Both sides hear 4410, and the holder of the expired one does not come back."""
    expiring = await asyncio.to_thread(
        lambda: identities._forged(tmp_path, "net", "short", not_after=identities.now() + timedelta(seconds=3))
    )
    async with WebSocketBed(tmp_path) as bed:
        lasting, short = await bed.node("lasting"), await bed.node("short", credentials=expiring)
        await short.dial(lasting)
        await eventually(lambda: lasting.handler.reasons == [CloseReason.NOT_ADMITTED], 6)
        await eventually(lambda: short.handler.reasons == [CloseReason.NOT_ADMITTED])
        assert "expired" in lasting.handler.closed[0][2]
        assert lasting.endpoint.statistics()["links_expired"] == 1
        with pytest.raises(DialError):
            await short.dial(lasting)
        await eventually(lambda: lasting.endpoint.statistics().get("refused_certificate") == 1)


async def test_a_renewed_node_is_redialled_and_never_suspected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its certificate is renewed while a link shows the old one; at the old one's end the link is made anew."""
    starts: list[Renewal] = []

    def short_lived(directory: NodeDirectory, *, now: datetime) -> Credentials:
        validity = timedelta(seconds=4 if directory.node_id == "b" else 3600)
        return obtain_credentials(directory, now=now, validity=validity)

    monkeypatch.setattr(mesh.runtime, "obtain_credentials", short_lived)
    start = Renewal.start
    monkeypatch.setattr(Renewal, "start", lambda renewal: starts.append(renewal))  # noqa: PLW0108 - a method
    async with await join(tmp_path, "a") as a, await join(tmp_path, "b") as b:
        await a.wait_for_members(2)
        first = await eventually(lambda: a._runtime.endpoint.links.get(b._runtime.node_id))
        happened: list[object] = []
        events = a.events()
        watching = asyncio.create_task(_collect(events, happened))
        (renewal,) = [one for one in starts if one is b._runtime.renewal]
        start(renewal)
        await eventually(lambda: b._runtime.renewal.renewed == 1)
        assert a._runtime.endpoint.links.get(b._runtime.node_id) is first, "renewing alone closes nothing"

        def replaced() -> bool:
            link = a._runtime.endpoint.links.get(b._runtime.node_id)
            return link is not None and link is not first and link.is_open

        await eventually(replaced, 8)
        assert a.stats()["links"]["links_expired"] + b.stats()["links"].get("links_expired", 0) >= 1
        await b.register_agent(7, handler=None)
        await a.send(7, b"still there", ack=True)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert not [event for event in happened if isinstance(event, NodeSuspected | NodeFailed)]


async def _collect(events: AsyncIterator[object], into: list[object]) -> None:
    async for event in events:
        into.append(event)  # noqa: PERF401 - seen while it goes on
