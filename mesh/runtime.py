"""One running node: the layers, started in order and stopped in reverse.

The runtime owns everything that lives as long as the node: its directory on disk, its credentials, the endpoint,
gossip, discovery, the courier, the certificate's renewal and the control socket.  Whatever was started when a later
step fails is stopped again, so a node either runs or leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from gossip import events as gossip_events
from gossip.discovery.advertise import Interfaces, advertise_addresses
from gossip.discovery.base import Announcement, Discovery, Sighting
from gossip.discovery.bootstrap import BootstrapDiscovery
from gossip.discovery.interfaces import InterfaceWatcher
from gossip.discovery.mdns import MdnsDiscovery
from gossip.discovery.snapshot import SnapshotDiscovery
from gossip.discovery.tree import TreeDiscovery
from gossip.events import Deliver, Member, MemberState
from gossip.events import Superseded as SupersededNotice
from gossip.incarnation import life_of, make_incarnation
from gossip.service import BroadcastOutcome, GossipService
from state.clocks.vectors import Writer
from state.journal import Journal
from transport.clock import SystemClock
from transport.errors import PeerRefused, RemoteProtocolError
from transport.identity.audit import AuditLog
from transport.identity.credentials import Credentials, obtain_credentials
from transport.identity.datadir import NodeDirectory, default_data_dir, default_node_id
from transport.identity.enrolment import EnrolmentDesk
from transport.identity.invites import Token
from transport.identity.joining import enrol
from transport.identity.tls import TlsContexts
from transport.identity.trail import AuditTrail
from transport.link import CloseReason, Link
from transport.logs import get_logger
from transport.tasks import TaskScope, in_thread
from transport.types import Address, NodeId
from transport.websocket import WebSocketEndpoint
from transport.wire import Envelope, Kind

from .agents import LocalAgent
from .config import MeshConfig
from .control.server import ControlServer
from .control.target import ControlTarget
from .documents.door import Documents
from .errors import NetworkClosed, Superseded
from .events import BroadcastsMissed, PartitionDetected, PartitionHealed
from .messaging.courier import Courier
from .messaging.durable import TABLES, DurableCourier
from .messaging.groups import Groups
from .messaging.moves import FEATURE as MOVES
from .messaging.streams import FEATURE as STREAMS
from .observers import Observers
from .profile import NodeProfile, encode_profile
from .renewal import Renewal
from .sealing.groups import SealedGroups
from .sealing.keyring import EVERYBODY
from .sealing.links import FEATURE as SEALED
from .sealing.links import SealedLinks, identity_of
from .types import AgentNode
from .view import NetworkView

log = get_logger("mesh.node")

# Registrations made in one go become one change of gossip.
PROFILE_DELAY_S: Final = 0.01

# What other modules use and only start() can make.
_MADE_BY_START: Final = frozenset(
    {"node_id", "courier", "groups", "documents", "durable", "gossip", "endpoint", "renewal"}
)

_LIVE: Final = (MemberState.ALIVE, MemberState.SUSPECT)

_ALL_INTERFACES: Final = ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound


class Runtime:
    """The parts of one node.

    Args:
        config: What to run.
        admit: Whether a node that is not known yet may become a member; ``None``: every one may.
    """

    def __init__(self, config: MeshConfig, *, admit: Callable[[AgentNode], bool] | None = None) -> None:
        self._config = config
        self._admit = admit
        self._clock = SystemClock()
        self._rng = random.Random()  # noqa: S311 - jitter and sampling, nothing secret
        self._stack = AsyncExitStack()
        self._state = "new"
        # Set when the start is over, however it went.
        self._started = asyncio.Event()
        self._closed = asyncio.Event()
        self._ending: BaseException | None = None
        self._profile = NodeProfile()
        self._profile_timer: asyncio.TimerHandle | None = None
        # What this node subscribes to: groups of messages, and of documents.
        self._message_groups: tuple[str, ...] = ()
        self._document_groups: tuple[str, ...] = ()
        self._discoveries: list[Discovery] = []
        self._control: ControlServer | None = None
        self._snapshot: SnapshotDiscovery | None = None
        self._scope = TaskScope("node")
        # Who last answered at a bootstrap address: while it is linked, the address need not be dialled again.
        self._seeds = tuple(config.bootstrap)
        self._seed_nodes: dict[Address, NodeId] = {}
        self.view = NetworkView()
        self.observers = Observers()

    # --- starting -----------------------------------------------------------------------------------------------

    async def start(self, target: ControlTarget) -> None:
        """Start every layer.

        Args:
            target: What commands through the control socket act on.

        Raises:
            MeshError: One could not be started; those before it were stopped again.
        """
        if self._state != "new":
            raise NetworkClosed("this manager was started before", hint="make another one with join_network")
        self._state = "starting"
        try:
            async with AsyncExitStack() as stack:
                stack.push_async_callback(self._scope.close)
                await self._start_identity(stack)
                await self._start_links(stack)
                await self._start_discovery(stack)
                await self._start_control(stack, target)
                self._stack = stack.pop_all()
                self._state = "running"
        finally:
            self._started.set()
            if self._state != "running":
                self._ended()
        log.info("node ready", node=self.node_id, addresses=[str(address) for address in self.addresses])

    if not TYPE_CHECKING:  # for which every name would exist

        def __getattr__(self, name: str) -> object:
            # Only asked for what is not there, so it costs nothing later.
            if name in _MADE_BY_START:
                raise _not_in_network()
            raise AttributeError(name)

    async def _start_identity(self, stack: AsyncExitStack) -> None:
        self._directory = await in_thread(self._open_directory, stack)
        self.node_id: NodeId = self._directory.node_id
        if self._config.join_token is not None:
            token = self._config.join_token.get_secret_value()
            await enrol(token, self._directory, clock=self._clock)
            # Whoever admitted this node is the first that it can find; there may be no other way.
            self._seeds = tuple(dict.fromkeys((*self._seeds, *Token.decode(token).addresses)))
        now = datetime.fromtimestamp(self._clock.wall(), UTC)
        self._credentials = await in_thread(obtain_credentials, self._directory, now=now)
        self._contexts = await in_thread(TlsContexts, self._credentials)
        self._audit = AuditLog(self._directory.path / "audit.log", clock=self._clock)
        self._trail = AuditTrail(self._audit)
        stack.push_async_callback(self._trail.close)
        self._incarnation = make_incarnation(await in_thread(self._directory.next_life))
        self._profile = replace(
            self._profile,
            can_issue=self._credentials.can_issue,
            opens_sealed=True,
            demands_sealed=self._config.messages.end_to_end,
        )

    def _open_directory(self, stack: AsyncExitStack) -> NodeDirectory:
        data_dir = self._config.data_dir or default_data_dir()
        node_id = self._config.node_id or default_node_id(data_dir, self._config.network)
        directory = NodeDirectory.open(data_dir, self._config.network, node_id)
        stack.callback(directory.release)  # here, since whoever waits for this thread may be cancelled
        return directory

    async def _start_links(self, stack: AsyncExitStack) -> None:
        config, directory = self._config, self._directory
        await self._start_messages(stack)
        self._watcher = InterfaceWatcher()
        stack.push_async_callback(self._watcher.close)
        await self._watcher.start()
        self._desk = EnrolmentDesk(
            directory, self._contexts, clock=self._clock, is_member=self._is_live, audit=self._audit
        )
        self.gossip = GossipService(
            self.node_id,
            self._incarnation,
            listener=self,
            data_handler=self._envelopes_received,
            config=config.gossip_config(),
            meta=encode_profile(self._profile),
            admit=None if self._admit is None else self._admits,
            persist=lambda incarnation: directory.record_life(life_of(incarnation)),
            clock=self._clock,
            rng=self._rng,
        )
        self.renewal = Renewal(
            directory,
            self._credentials,
            clock=self._clock,
            rng=self._rng,
            installed=self._credentials_renewed,
            issuers=self._issuers,
        )
        self.endpoint = WebSocketEndpoint(
            config.network,
            self.node_id,
            self._incarnation,
            self._contexts,
            config.listen,
            self.gossip,
            advertise=lambda: self.addresses,
            clock=self._clock,
            config=config.link_config(),
            enrolment=self._desk,
            trail=self._trail,
            features=(STREAMS, MOVES, SEALED) if config.messages.end_to_end else (STREAMS, MOVES),
        )
        stack.push_async_callback(self.endpoint.close)
        await self.endpoint.start()
        stack.push_async_callback(self.courier.close)
        stack.push_async_callback(self.groups.close)
        stack.push_async_callback(self.gossip.close)
        await self.gossip.start(self.endpoint)
        stack.push_async_callback(self._desk.close)
        await self._desk.start()
        self.renewal.start()
        stack.push_async_callback(self.renewal.close)

    async def _start_messages(self, stack: AsyncExitStack) -> None:
        self.courier = Courier(
            self.node_id,
            life_of(self._incarnation),
            clock=self._clock,
            window_bytes=self._config.messages.window_bytes,
            locate=self.view.directory.locate,
            broadcast=self._broadcast,
            want_link=lambda node_id: self.gossip.want_link(NodeId(node_id)),
        )
        self.groups = Groups(
            self.courier,
            self,
            subscribers=self.view.subscribers,
            announce=lambda groups: self._set_groups(groups, self._document_groups),
            rng=self._rng,
        )
        self.documents = Documents(
            self.courier,
            writer=Writer(self.node_id, life_of(self._incarnation)),
            path=self._directory.path / "documents.db",
            carrier=self,
            subscribers=self.view.subscribers,
            announce=lambda groups: self._set_groups(self._message_groups, groups),
            clock=self._clock,
            rng=self._rng,
        )
        stack.push_async_callback(self.documents.close)
        journal = await Journal.open(self._directory.path / "messages.db", TABLES)
        stack.push_async_callback(journal.close)
        self.durable = await DurableCourier.open(
            self.courier,
            journal,
            life_of(self._incarnation),
            clock=self._clock,
            rng=self._rng,
            config=self._config.durable_config(),
        )
        self._sealed_groups = SealedGroups(
            self._config.network,
            self.node_id,
            life_of(self._incarnation),
            self,
            self.view,
            self.documents,
            required=self._config.messages.end_to_end,
            clock=self._clock,
            note=self._trail.note,
            rng=self._rng,
            entropy=secrets.token_bytes,
        )
        stack.push_async_callback(self._sealed_groups.close)
        self._sealing = SealedLinks(
            identity_of(self._credentials, life_of(self._incarnation)),
            self._sealed_groups,
            required=self._config.messages.end_to_end,
            clock=self._clock,
            note=self._trail.note,
        )
        stack.callback(self._sealing.close)

    async def _start_discovery(self, stack: AsyncExitStack) -> None:
        config = self._config
        self._snapshot = SnapshotDiscovery(self._directory.path / "members.log", rng=self._rng)
        self._discoveries = [TreeDiscovery(self._directory.network_path, rng=self._rng), self._snapshot]
        if self._seeds:
            self._discoveries.append(
                BootstrapDiscovery(
                    self._seeds, self._dial_seed, linked=self._seed_linked, clock=self._clock, rng=self._rng
                )
            )
        if config.mdns:
            self._discoveries.append(
                MdnsDiscovery(self._watcher, peers_missing=self._peers_missing, clock=self._clock, rng=self._rng)
            )
        announcement = self._announcement()
        for discovery in self._discoveries:
            stack.push_async_callback(discovery.close)
            await discovery.start(announcement, self)
        stack.callback(self._watcher.subscribe(self._interfaces_changed))

    async def _start_control(self, stack: AsyncExitStack, target: ControlTarget) -> None:
        if self._config.control:
            path = await asyncio.to_thread(lambda: self._directory.control_socket_path)
            self._control = ControlServer(target, path)
            stack.push_async_callback(self._control.close)
            await self._control.start()

    def _announcement(self) -> Announcement:
        return Announcement(
            network=self._config.network,
            node_id=self.node_id,
            incarnation=self._incarnation,
            port=self.endpoint.listening.port,
            addresses=self.addresses,
            authority=self._credentials.authority_fingerprint,
            listens_on_all=self._config.listen.host in _ALL_INTERFACES,
        )

    async def _dial_seed(self, address: Address) -> Link:
        try:
            link = await self.endpoint.dial(address)
        except PeerRefused as error:
            if error.code == CloseReason.DUPLICATE_NODE:
                self.gossip.node_id_taken(error.message)
            raise
        self._seed_nodes[address] = link.peer.node_id
        return link

    def _seed_linked(self, address: Address) -> bool:
        node_id = self._seed_nodes.get(address)
        # In a large network most nodes have no link to the seed; while gossip says that it lives, that is enough.
        return node_id in self.gossip.links or (
            node_id is not None and bool(self.gossip.links) and self._is_live(node_id)
        )

    # --- stopping -----------------------------------------------------------------------------------------------

    async def stop(self, *, timeout_s: float) -> None:
        """Leave in order and stop every layer; a second call waits for the first, a call during start for its end."""
        if self._state == "new":
            self._ended()
        await self._started.wait()
        if self._state == "running":
            self._state = "leaving"
            await self._leave(timeout_s)
        if self._state == "leaving":
            await self._closed.wait()

    async def _leave(self, timeout_s: float) -> None:
        try:
            # Commands first: what they run here, such as the agent of `mesh listen`, ends while the node still can.
            if self._control is not None:
                await self._control.close()
            self.up_to_date_view()
            # What was accepted goes out before the goodbye; agents stop first, so that nothing new is accepted.
            await self.courier.close(drain_s=timeout_s / 2)
            await self.documents.close()
            await self._sealed_groups.drain(timeout_s / 4)
            if self._snapshot is not None:
                self._snapshot.leave()
            await self.gossip.leave(timeout_s)
        finally:
            try:
                await self._stack.aclose()
            finally:
                self._ended()
                log.info("node left", node=self.node_id)

    def _ended(self) -> None:
        self._state = "closed"
        self._started.set()
        self.observers.close()
        self._closed.set()

    async def wait_closed(self) -> None:
        """Return when the node has left, or raise why it had to."""
        await self._closed.wait()
        if self._ending is not None:
            raise self._ending

    # --- what gossip tells (GossipListener) ---------------------------------------------------------------------

    def member_changed(self, before: Member | None, after: Member) -> None:
        """See :class:`gossip.service.GossipListener`."""
        del before  # the view knows what it has shown
        events = self.view.apply(after)
        self._sealed_groups.readers_changed()
        if after.state not in _LIVE:
            self._sealing.forget(after.node_id)
        self.groups.heard(events)
        self._tell_groups()
        if after.node_id == self.node_id:
            self._incarnation = after.incarnation
        elif self._snapshot is not None:
            self._snapshot.note(after)
        for event in events:
            self.observers.publish(event)
        if events:
            self.courier.news()

    def member_forgotten(self, member: Member) -> None:
        """See :class:`gossip.service.GossipListener`."""
        self.view.forget(member.node_id)
        self._sealed_groups.readers_changed()
        self._tell_groups()
        self.courier.news()

    def _tell_groups(self) -> None:
        for group, node_id, subscribed in self.view.group_changes:
            self.gossip.subscriber_changed(group, NodeId(node_id), subscribed=subscribed)
            self.documents.subscriber_changed(group, NodeId(node_id), subscribed=subscribed)

    def broadcast_received(self, delivery: Deliver) -> None:
        """See :class:`gossip.service.GossipListener`."""
        life = life_of(delivery.origin_incarnation)
        self._sealed_groups.received(delivery.group, delivery.origin, life, delivery.payload)

    def opened(self, group: str, origin: str, life: int, payload: bytes) -> None:
        """See :class:`mesh.sealing.groups.Node`."""
        try:
            if group == EVERYBODY:
                self.courier.broadcast_received(origin, life, payload)
            elif self.documents.takes(group):
                self.documents.live_received(group, payload, NodeId(origin), life)
            else:
                self.groups.received(group, payload, origin, life)
        except RemoteProtocolError as error:
            # Its origin may be many hops away: the neighbour that passed it on is not to blame.
            log.warning("broadcast refused", origin=origin, reason=error.message)

    def hears(self, group: str) -> bool:
        """See :class:`mesh.sealing.groups.Node`."""
        return group in self._profile.groups

    def want_link(self, node_id: NodeId) -> None:
        """See :class:`mesh.sealing.groups.Node`."""
        self.gossip.want_link(node_id)

    def partition_changed(self, change: gossip_events.PartitionDetected | gossip_events.PartitionHealed) -> None:
        """See :class:`gossip.service.PartitionListener`."""
        if isinstance(change, gossip_events.PartitionDetected):
            self.observers.publish(PartitionDetected(change.lost, change.present))
        else:
            self.observers.publish(PartitionHealed(change.returned, change.missing, change.present))

    def broadcasts_missed(self, missed: gossip_events.Missed) -> None:
        """See :class:`gossip.service.MissedListener`."""
        self.observers.publish(BroadcastsMissed(missed.origin, missed.last - missed.first + 1))

    def superseded(self, notice: SupersededNotice) -> None:
        """See :class:`gossip.service.GossipListener`."""
        self._ending = Superseded(
            f"node {self.node_id} had to leave: {notice.why}", hint="give each process a node id of its own"
        )
        self._scope.spawn(self.stop(timeout_s=1.0), name="leave after being superseded")

    def link_opened(self, link: Link) -> None:
        """See :class:`gossip.service.GossipListener`."""
        self._sealing.link_opened(link)

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        """See :class:`gossip.service.GossipListener`."""
        self._sealing.link_closed(link, reason, detail)
        if not self._is_live(link.peer.node_id):
            self._sealing.forget(link.peer.node_id)

    def hold_link(self, link: Link) -> bool:
        """See :class:`gossip.service.HoldingListener`."""
        sealed = self._sealing.of(link)
        if self.renewal.is_using(link) or self._sealed_groups.is_using(sealed) or self.documents.is_using(sealed):
            return False
        return self.courier.hold_link(sealed)

    def release_link(self, link: Link) -> None:
        """See :class:`gossip.service.HoldingListener`."""
        self.courier.release_link(self._sealing.of(link))

    def _envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            if envelope.kind == Kind.RENEWAL:
                self.renewal.received(link, envelope)
        self._sealing.envelopes_received(link, envelopes)

    def _broadcast(self, payload: bytes, ttl: int) -> BroadcastOutcome:
        return self.gossip.broadcast(self._sealed_groups.seal(EVERYBODY, payload), ttl)

    def open_group(self, group: str, subscribers: Iterable[NodeId], *, member: bool) -> None:
        """See :class:`mesh.messaging.groups.GroupCarrier`."""
        self.gossip.open_group(group, subscribers, member=member)

    def publish(self, group: str, payload: bytes, ttl: int) -> BroadcastOutcome:
        """See :class:`mesh.messaging.groups.GroupCarrier`."""
        return self.gossip.publish(group, self._sealed_groups.seal(group, payload), ttl)

    def _admits(self, member: Member) -> bool:
        """Ask the application; if it fails, nobody comes in."""
        assert self._admit is not None
        try:
            return bool(self._admit(self.view.describe(member)))
        except Exception:  # an application's code may raise anything
            log.exception("admit raised: the node is not admitted", node=member.node_id)
            return False

    # --- what discovery tells (DiscoverySink) -------------------------------------------------------------------

    def found(self, sighting: Sighting) -> None:
        """See :class:`gossip.discovery.base.DiscoverySink`."""
        if sighting.node_id != self.node_id:
            self.gossip.peer_found(sighting.node_id, sighting.addresses)

    def lost(self, node_id: NodeId, source: str) -> None:
        """See :class:`gossip.discovery.base.DiscoverySink`: a hint that membership does not need."""
        log.debug("announcement withdrawn", node=node_id, source=source)

    def _peers_missing(self) -> bool:
        live = sum(1 for member in self.gossip.members() if member.state in _LIVE)
        return len(self.gossip.links) < max(1, min(live - 1, self._config.gossip_config().active_view_min))

    def _interfaces_changed(self, interfaces: Interfaces) -> None:
        del interfaces  # `addresses` reads them from the watcher
        self.gossip.set_addresses(self.addresses)
        self._scope.spawn(self._announce(), name="announce new addresses")

    async def _announce(self) -> None:
        announcement = self._announcement()
        for discovery in self._discoveries:
            await discovery.update(announcement)

    # --- this node ----------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where this node tells its peers to dial it, best first."""
        return advertise_addresses(self.endpoint.listening, self._watcher.interfaces, self._config.advertise)

    def node(self, node_id: str) -> AgentNode:
        """A snapshot of one node.

        Raises:
            KeyError: It is not a member.
        """
        heard_s = self._clock.wall() if node_id == self.node_id else self.gossip.last_heard(NodeId(node_id))
        return self.up_to_date_view().node(node_id, int(heard_s * 1000))

    def add_agent(self, agent: LocalAgent) -> None:
        """Run ``agent`` here and let the network know.

        Raises:
            RegistrationTooLarge: It does not fit the profile; nothing changed.
            NetworkClosed: The node is not running.
        """
        self.check_running()
        self._set_profile(replace(self._profile, agents=(*self._profile.agents, agent.info)))
        self.courier.agents[agent.agent_id] = agent
        self.courier.news()

    async def remove_agent(self, agent: LocalAgent) -> None:
        """Stop ``agent`` and let the network know; harmless when it is gone."""
        if self.courier.agents.get(agent.agent_id) is not agent:
            return
        del self.courier.agents[agent.agent_id]
        if self._state == "running":
            self._set_profile(
                replace(self._profile, agents=tuple(a for a in self._profile.agents if a.agent_id != agent.agent_id))
            )
            self.courier.news()
        await agent.close()

    def set_metadata(self, metadata: Mapping[str, str]) -> None:
        """Replace what this node says of itself."""
        self.check_running()
        self._set_profile(replace(self._profile, metadata=dict(metadata)))

    def set_maintenance(self, *, on: bool) -> None:
        """Ask for no new work, or take work again."""
        self.check_running()
        self._set_profile(replace(self._profile, maintenance=on))

    def _set_groups(self, messages: tuple[str, ...], documents: tuple[str, ...]) -> None:
        self._set_profile(replace(self._profile, groups=(*messages, *documents)))
        self._message_groups, self._document_groups = messages, documents

    def _set_profile(self, profile: NodeProfile) -> None:
        encode_profile(profile)  # refuses what is too large before anything changes
        self._profile = profile
        if self._profile_timer is None:
            self._profile_timer = asyncio.get_running_loop().call_later(PROFILE_DELAY_S, self._tell_profile)

    def _tell_profile(self) -> None:
        self._profile_timer = None
        self.gossip.set_meta(encode_profile(self._profile))

    def up_to_date_view(self) -> NetworkView:
        """The view, with what was just said of this node: whoever registers an agent sees it at once."""
        if self._profile_timer is not None:
            self._profile_timer.cancel()
            self._tell_profile()
        return self.view

    def check_running(self) -> None:
        """Raise NetworkClosed unless this node is in the network."""
        if self._state != "running":
            raise _not_in_network()

    # --- certificates -------------------------------------------------------------------------------------------

    def _credentials_renewed(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._contexts.reload(credentials)
        self._sealing.renewed(identity_of(credentials, life_of(self._incarnation)))

    def _issuers(self) -> list[Link]:
        links, issuers = self.gossip.links, [NodeId(node_id) for node_id in self.view.issuers()]
        if issuers and not any(node_id in links for node_id in issuers):
            self.gossip.want_link(self._rng.choice(issuers))
        return [links[node_id] for node_id in issuers if node_id in links]

    async def invite(self, *, ttl_s: float, uses: int) -> str:
        """Make a join token; see :meth:`mesh.manager.AgentNetworkManager.invite`."""
        self.check_running()
        return await self._desk.invite(self.addresses, ttl_s=ttl_s, uses=uses)

    def _is_live(self, node_id: NodeId) -> bool:
        member = self.gossip.member(node_id)
        return member is not None and member.state in _LIVE

    # --- introspection ------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """Counters by layer."""
        return {
            "node_id": self.node_id,
            "network": self._config.network,
            "certificate_expires_in_s": int(self.renewal.expires_in.total_seconds()),
            "messages": self.courier.statistics(),
            "groups": self.groups.statistics(),
            "durable": self.durable.statistics(),
            "documents": self.documents.statistics(),
            "end_to_end": self._sealing.statistics(),
            "sender_keys": self._sealed_groups.statistics(),
            "gossip": self.gossip.statistics(),
            "links": self.endpoint.statistics(),
            "enrolment": self._desk.statistics(),
            "discovery": {discovery.name: discovery.statistics() for discovery in self._discoveries},
        }


def _not_in_network() -> NetworkClosed:
    return NetworkClosed("this node is not in the network", hint="join with join_network")
