"""The layers of a node start together, end together, and hold when nodes fail, restart and renew certificates."""

from __future__ import annotations

import asyncio
import functools
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from identities import now, open_directory
from networks import Networks, about, cut, event, linked, networks, runtime, vanish
from support import eventually, open_descriptors

from mesh import (
    AgentMessage,
    AgentNetworkManager,
    AgentNode,
    DeliveryUncertain,
    MeshConfig,
    MeshError,
    NetworkClosed,
    NodeStatus,
    NotDelivered,
    Superseded,
    join_network,
)
from mesh import runtime as runtime_module
from mesh.errors import ListenError, NodeIdInUse, TokenMalformed
from mesh.events import AgentLeft, MeshEvent, NodeFailed, NodeJoined, NodeLeft, NodeSuspected, NodeUpdated
from mesh.renewal import Renewal
from transport.identity.credentials import obtain_credentials
from transport.types import NodeId


@pytest.fixture
async def join(tmp_path: Path) -> AsyncIterator[Networks]:
    """Starts nodes."""
    async with networks(tmp_path) as started:
        yield started


async def echo(message: AgentMessage) -> bytes:
    """An agent that answers with what it was sent."""
    return message.payload


# --- starting ---------------------------------------------------------------------------------------------------


async def test_the_two_forms_of_joining(join: Networks) -> None:
    """``await`` gives a node that its caller leaves; ``async with`` leaves at the end of the block."""
    awaited = await join("a")
    async with join_network(node_id="b", **join.settings()) as entered:
        await linked(awaited, entered)

    assert entered.members()
    with pytest.raises(NetworkClosed):
        await entered.send(1, b"")
    await eventually(lambda: awaited.member("b").status is NodeStatus.DISCONNECTED)


async def test_nodes_that_start_at_once_on_an_empty_tree(join: Networks) -> None:
    """Eight nodes find no authority, and agree on one."""
    nets = await join.several(*(f"n{n}" for n in range(8)))

    assert len({runtime(net)._credentials.authority_fingerprint for net in nets}) == 1
    assert all(len(net.members()) == 8 for net in nets)


async def test_the_application_has_a_say_in_who_may_be_a_member(join: Networks) -> None:
    """A node that it refuses, or about which it fails, is no member here; the others are."""
    asked: list[str] = []

    def admit(node: AgentNode) -> bool:
        asked.append(node.node_id)
        if node.node_id == "bad":
            raise RuntimeError("no idea")
        return node.node_id != "refused"

    picky = await join("picky", admit=admit)
    for name in ("refused", "bad", "good"):
        await join(name, bootstrap=[str(picky.addresses[0])])

    await eventually(lambda: {node.node_id for node in picky.members()} == {"picky", "good"})
    await eventually(lambda: {"refused", "bad", "good"} <= set(asked))


async def test_two_networks_in_one_tree(join: Networks) -> None:
    """They share a folder and nothing else: other authorities, other members, even with the same node names."""
    red = await join.several("a", "b", network="red")
    blue = await join.several("a", "b", network="blue")
    bridge = await join("c", network="blue", bootstrap=list(red[0].addresses))
    await red[0].register_agent(1, handler=echo)
    await blue[0].register_agent(1, handler=echo)
    await linked(*blue, bridge)

    assert [node.node_id for node in red[1].members()] == ["a", "b"]
    assert (await red[1].send(1, b"", ack=True)).node_id == "a"
    assert (await bridge.send(1, b"", ack=True)).node_id == "a"
    assert runtime(red[0]).courier.statistics()["received"] == runtime(blue[0]).courier.statistics()["received"] == 1


async def test_the_loopback_of_ipv6(join: Networks) -> None:
    """Nodes listen, advertise and dial there as well."""
    if not socket.has_ipv6:  # pragma: no cover - every machine that we test on has it
        pytest.fail("this Python has no IPv6")
    nets = await join.several("a", "b", listen="[::1]:0")

    assert nets[0].node.address == "::1"
    await nets[0].register_agent(1, handler=echo)
    assert await nets[1].request(1, b"six") == b"six"


def _taken_port() -> socket.socket:
    taken = socket.create_server(("127.0.0.1", 0))
    taken.setblocking(False)
    return taken


async def test_a_start_that_fails_leaves_nothing(join: Networks) -> None:
    """Port in use, bad token, locked directory: the error is the cause's own, and the same node starts afterwards."""
    other = await join("other")
    before, descriptors = asyncio.all_tasks(), open_descriptors()
    with _taken_port() as taken:
        port = taken.getsockname()[1]
        failures: list[tuple[type[MeshError], dict[str, Any]]] = [
            (ListenError, {"listen": f"127.0.0.1:{port}"}),
            (TokenMalformed, {"join_token": "pm1.nonsense"}),
            (NodeIdInUse, {"node_id": "other"}),
        ]
        for error, settings in failures:
            with pytest.raises(error) as caught:
                await join_network(**{"node_id": "a", **join.settings(**settings)})
            assert caught.value.hint or str(port) in caught.value.message
    await eventually(lambda: asyncio.all_tasks() == before)

    after = open_descriptors()
    assert descriptors is None or after is None or after <= descriptors + 2  # the executor may have grown
    await linked(other, await join("a"))


async def test_a_failed_node_is_closed(join: Networks) -> None:
    """Nobody waits for ever at a manager that did not start, and it cannot be started again."""
    net = AgentNetworkManager(MeshConfig(node_id="a", join_token="pm1.nonsense", **join.settings()))
    events = net.events()
    with pytest.raises(TokenMalformed):
        await net.start()

    await net.wait_closed()
    await net.leave_network()
    assert [found async for found in events] == []
    with pytest.raises(NetworkClosed, match="started before"):
        await net.start()


async def test_leaving_before_the_start(join: Networks) -> None:
    """A manager that was left before it started is closed and stays so."""
    net = AgentNetworkManager(MeshConfig(node_id="a", **join.settings()))
    await net.leave_network()
    await net.wait_closed()

    with pytest.raises(NetworkClosed, match="started before"):
        await net.start()


async def test_leaving_during_the_start(join: Networks) -> None:
    """Leaving waits for the start and undoes it: at the end nothing runs and the directory is free."""
    net = AgentNetworkManager(MeshConfig(node_id="a", **join.settings()))
    starting = asyncio.ensure_future(net.start())
    await asyncio.sleep(0)
    await net.leave_network()
    await starting
    await net.wait_closed()

    with pytest.raises(NetworkClosed):
        await net.send(1, b"")
    await join("a")


def _lock_and_release(tree: Path) -> None:
    with open_directory(tree, node_id="a"):
        pass  # it would raise NodeIdInUse


def _has_endpoint(net: AgentNetworkManager) -> bool:
    return "endpoint" in vars(runtime(net))


@pytest.mark.parametrize("listening", [False, True])
async def test_a_start_that_is_cancelled(join: Networks, listening: bool) -> None:
    """Wherever the cancellation falls, nothing is left, and the node id is free at once."""
    await join("other")
    before = asyncio.all_tasks()
    for turn in range(25):
        net = AgentNetworkManager(MeshConfig(node_id="a", **join.settings()))
        starting = asyncio.ensure_future(net.start())
        if listening:
            await eventually(functools.partial(_has_endpoint, net), interval_s=0.0)
        for _ in range(turn):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        if starting.cancelled():
            await asyncio.to_thread(_lock_and_release, join.folder / "one")
        await net.leave_network()
        await net.wait_closed()

    await eventually(lambda: asyncio.all_tasks() == before)


# --- leaving ----------------------------------------------------------------------------------------------------


async def test_leaving_twice(join: Networks) -> None:
    """The second call waits for the first; both return when everything has ended, and so does ``wait_closed``."""
    here, there = await join.several("a", "b")
    closed = asyncio.ensure_future(there.wait_closed())
    await asyncio.gather(there.leave_network(), there.leave_network())
    await there.leave_network()
    await closed

    await eventually(lambda: here.member("b").status is NodeStatus.DISCONNECTED)


async def test_leaving_that_is_cancelled(join: Networks) -> None:
    """Who gives up waiting still leaves nothing running."""
    net = await join("a")
    await join("b")
    leaving = asyncio.ensure_future(net.leave_network())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    await net.wait_closed()

    assert (await join("a")).node.status is NodeStatus.ACTIVE


async def test_leaving_while_everybody_is_busy(join: Networks) -> None:
    """Handlers are cancelled, and whoever waits is told: senders without a receiver, askers on both sides."""
    here, there = await join.several("a", "b")
    cancelled = asyncio.Event()

    async def work(message: AgentMessage) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    for net, agent_id in ((here, 1), (there, 2)):
        await net.register_agent(agent_id, handler=work)
    await here.wait_for_agent(2)
    await there.wait_for_agent(1)
    waiting = [
        asyncio.ensure_future(here.send(99, b"", timeout=30)),
        asyncio.ensure_future(here.request(99, b"", timeout=30)),
        asyncio.ensure_future(here.request(2, b"", timeout=30)),
        asyncio.ensure_future(here.request(1, b"", timeout=30)),
    ]
    asked = asyncio.ensure_future(there.request(1, b"", timeout=30))
    await eventually(lambda: runtime(here).courier.statistics()["received"] == 2)
    await eventually(lambda: runtime(there).courier.statistics()["received"] == 1)
    await here.leave_network()

    assert cancelled.is_set()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, MeshError), outcome
    with pytest.raises(MeshError, match="agent 1 was stopped before it had answered"):
        await asked


async def test_a_handler_that_will_not_end(join: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left behind and named in the log; the node leaves all the same."""
    monkeypatch.setattr("mesh.agents.HANDLER_STOP_S", 0.05)
    net = await join("a")
    started, end = asyncio.Event(), asyncio.Event()

    async def stubborn(message: AgentMessage) -> None:
        while not end.is_set():
            started.set()
            try:
                await end.wait()
            except asyncio.CancelledError:
                continue

    await net.register_agent(1, handler=stubborn)
    await net.send(1, b"")
    await started.wait()
    async with asyncio.timeout(3):
        await net.leave_network()
    end.set()

    assert net.stats()["messages"]["received"] == 1


async def test_what_was_sent_before_leaving_arrives(join: Networks) -> None:
    """Messages that were accepted without acknowledgement are all delivered before the goodbye."""
    here, there = await join.several("a", "b")
    heard: list[int] = []

    async def hear(message: AgentMessage) -> None:
        heard.append(int(message.payload))

    await there.register_agent(7, handler=hear)
    await here.wait_for_agent(7)
    for number in range(20_000):
        await here.send(7, b"%d" % number)
    await here.leave_network()
    await eventually(lambda: len(heard) >= 20_000)

    assert heard == list(range(20_000))


# --- events -----------------------------------------------------------------------------------------------------


async def test_a_node_that_falls_silent(join: Networks) -> None:
    """It is suspected, then failed; its agents vanish; sending to them and to it ends with a plain error."""
    here, there = await join.several("a", "b")
    await there.register_agent(7, handler=echo)
    await here.wait_for_agent(7)
    events = here.events()
    await vanish(there)

    suspected = await event(events, NodeSuspected, about("b"))
    assert suspected.node.status is NodeStatus.INACTIVE
    failed = await event(events, NodeFailed, about("b"))
    assert failed.node.status is NodeStatus.DISCONNECTED
    assert (await event(events, AgentLeft)).agent.agent_id == 7
    assert here.agents() == []
    with pytest.raises(MeshError):
        await here.send(7, b"", timeout=0.05)


async def test_a_connection_that_breaks(join: Networks) -> None:
    """A live node whose link is cut is linked again; it does not fail, and messages go through."""
    here, there = await join.several("a", "b")
    await there.register_agent(7, handler=echo)
    await here.wait_for_agent(7)
    events = here.events()
    cut(here, "b")
    assert await here.request(7, b"again", timeout=5.0) == b"again"
    await linked(here, there)
    await here.leave_network()

    assert not [found async for found in events if isinstance(found, NodeFailed | NodeLeft) and about("b")(found)]


async def test_a_query_whose_link_breaks(join: Networks) -> None:
    """The asker is told at once that the outcome is uncertain."""
    here, there = await join.several("a", "b")
    asked = asyncio.Event()

    async def never(message: AgentMessage) -> None:
        asked.set()
        await asyncio.Event().wait()

    await there.register_agent(7, handler=never)
    await here.wait_for_agent(7)
    asking = asyncio.ensure_future(here.request(7, b"", timeout=30.0))
    await asked.wait()
    cut(here, "b")

    with pytest.raises(DeliveryUncertain, match="the link to b broke"):
        await asking


async def test_joining_leaving_and_coming_back(join: Networks) -> None:
    """The others see one node that joined, left and joined again, with a higher incarnation and no ghost."""
    here = await join("a")
    seen: list[MeshEvent] = []
    events = here.events()
    incarnations = []
    for _ in range(3):
        there = await join("b")
        joined = await event(events, NodeJoined, about("b"))
        incarnations.append(joined.node.incarnation)
        await there.register_agent(7, handler=echo)
        await here.wait_for_agent(7)
        assert await here.request(7, b"x") == b"x"
        await there.leave_network()
        seen.append(await event(events, NodeLeft, about("b")))
        assert here.agents() == []

    assert incarnations == sorted(set(incarnations))
    assert [node.node_id for node in here.members()] == ["a", "b"]
    assert here.member("b").status is NodeStatus.DISCONNECTED
    assert len(seen) == 3


async def test_a_crash_and_a_restart_before_anybody_noticed(join: Networks) -> None:
    """The new process is recognised as such: the old one's agents are gone, the new one's are there."""
    here, there = await join.several("a", "b")
    await there.register_agent(7, handler=echo)
    await here.wait_for_agent(7)
    old = here.member("b").incarnation
    await vanish(there)
    await there.leave_network()
    back = await join("b")
    await back.register_agent(8, handler=echo)
    await here.wait_for_agent(8)
    await linked(here, back)

    assert [agent.agent_id for agent in here.agents()] == [8]
    assert here.member("b").incarnation > old
    assert here.member("b").status is NodeStatus.ACTIVE
    with pytest.raises(MeshError):
        await here.request(7, b"", timeout=0.05)


async def test_an_update_says_what_changed(join: Networks) -> None:
    """Agents that come and go are changes of their node as well."""
    here, there = await join.several("a", "b")
    events = here.events()
    handle = await there.register_agent(7)
    updated = await event(events, NodeUpdated, lambda e: e.node.agent_ids == (7,))
    assert updated.node.node_id == "b"
    await handle.deregister()

    emptied = await event(events, NodeUpdated, lambda e: about("b")(e) and not e.node.agent_ids)
    assert emptied.node.status is NodeStatus.ACTIVE


# --- one id, two processes --------------------------------------------------------------------------------------


def _copy(folder: Path, node_id: str) -> None:
    """The tree ``one`` with the keys of ``node_id`` on another machine."""
    shutil.copytree(folder / "one", folder / "two", ignore=shutil.ignore_patterns("*.sock", "address*", "lock"))
    assert (folder / "two" / "default" / node_id).is_dir()


async def test_a_second_process_under_a_live_nodes_id_gives_way(join: Networks) -> None:
    """The newcomer leaves with ``Superseded``; the members keep the node that they have."""
    here, there = await join.several("a", "b")
    await asyncio.to_thread(_copy, join.folder, "b")
    second = await join("b", tree="two", bootstrap=list(here.addresses))

    with pytest.raises(Superseded, match="node b had to leave") as caught:
        async with asyncio.timeout(8):
            await second.wait_closed()
    assert "node id of its own" in caught.value.hint
    with pytest.raises(NetworkClosed):
        await second.send(1, b"")
    await there.register_agent(7, handler=echo)
    assert (await here.send(7, b"", ack=True)).node_id == "b"


async def test_a_node_whose_place_was_taken_learns_it(join: Networks) -> None:
    """A node that meets a network where a newer process has its id leaves with ``Superseded``."""
    old = await join("b")
    await asyncio.to_thread(_copy, join.folder, "b")
    here, new = await join("a", tree="two"), await join("b", tree="two")
    await linked(here, new)
    runtime(old).gossip.peer_found(NodeId("a"), here.addresses)

    with pytest.raises(Superseded):
        async with asyncio.timeout(8):
            await old.wait_closed()
    assert here.member("b").status is NodeStatus.ACTIVE
    assert here.member("b").port == new.node.port


# --- certificates -----------------------------------------------------------------------------------------------


@pytest.fixture
def start_renewal(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Certificates end in a minute, and are renewed when the test says so; the new ones last a week."""
    monkeypatch.setattr(
        runtime_module,
        "obtain_credentials",
        functools.partial(obtain_credentials, validity=timedelta(seconds=60)),
    )
    start = Renewal.start
    monkeypatch.setattr(Renewal, "start", lambda _: None)
    return lambda net: start(runtime(net).renewal)


async def _serial_shown(net: AgentNetworkManager, by: AgentNetworkManager) -> int:
    """The serial number of the certificate that ``by`` shows when ``net`` dials it."""
    name = f"{by.node.node_id}.default.peermesh.internal"
    _, writer = await asyncio.open_connection(
        by.node.address, by.node.port, ssl=runtime(net)._contexts.client, server_hostname=name
    )
    connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
    leaf = connection.getpeercert(binary_form=True)
    writer.close()
    assert leaf is not None
    return x509.load_der_x509_certificate(leaf).serial_number


async def test_a_certificate_renewed_on_the_spot(join: Networks, start_renewal: Any) -> None:
    """The node goes on: its links stay up, and whoever connects anew sees the new certificate."""
    here, there = await join.several("a", "b")
    link = runtime(here).gossip.links[NodeId("b")]
    before = await _serial_shown(here, there)
    start_renewal(there)
    await eventually(lambda: runtime(there).renewal.renewed == 1)

    assert await _serial_shown(here, there) != before
    assert runtime(here).gossip.links[NodeId("b")] is link
    assert link.is_open
    await there.register_agent(7, handler=echo)
    assert await here.request(7, b"x") == b"x"
    assert there.stats()["certificate_expires_in_s"] > 86_400
    await linked(here, there, await join("c"))


def _enrol_for_a_minute(folder: Path, node_id: str) -> None:
    """A node in the tree ``two``, which has no authority's key, with a short certificate of the one in ``one``."""
    with open_directory(folder / "one", node_id=node_id) as directory:
        obtain_credentials(directory, now=now(), validity=timedelta(seconds=60))
    shutil.copytree(folder / "one", folder / "two", ignore=shutil.ignore_patterns("ca.key", "lock"))


async def test_a_certificate_renewed_by_a_peer(join: Networks, start_renewal: Any) -> None:
    """A node on a machine without the authority's key asks a linked member that has it."""
    await asyncio.to_thread(_enrol_for_a_minute, join.folder, "b")
    here = await join("a")
    there = await join("b", tree="two", bootstrap=list(here.addresses))
    await linked(here, there)
    link, before = runtime(here).gossip.links[NodeId("b")], await _serial_shown(here, there)
    await eventually(lambda: runtime(there)._issuers() != [])
    start_renewal(there)
    await eventually(lambda: runtime(there).renewal.renewed == 1)

    assert runtime(here).renewal.issued == 1
    assert await _serial_shown(here, there) != before
    assert link.is_open
    assert there.stats()["certificate_expires_in_s"] > 86_400


async def test_leaving_while_a_certificate_is_renewed(join: Networks, start_renewal: Any) -> None:
    """The thread that writes the new files is waited for: the next start finds a whole certificate."""
    for _ in range(5):
        net = await join("a")
        start_renewal(net)
        await asyncio.sleep(0)
        await net.leave_network()

    here, there = await join("a"), await join("b")
    await linked(here, there)
    assert here.member("b").status is NodeStatus.ACTIVE


async def test_messages_to_a_node_that_left_are_refused(join: Networks) -> None:
    """Between the goodbye and its news, or after it, a sender gets an error and no silence."""
    here, there = await join.several("a", "b")
    await there.register_agent(7, handler=echo)
    await here.wait_for_agent(7)
    leaving = asyncio.ensure_future(there.leave_network())
    outcomes: list[MeshError] = []
    while len(outcomes) < 3:
        try:
            await here.send(7, b"", ack=True, timeout=0.05)
        except MeshError as error:
            outcomes.append(error)
    await leaving

    assert all(isinstance(error, NotDelivered | DeliveryUncertain | LookupError) for error in outcomes)
