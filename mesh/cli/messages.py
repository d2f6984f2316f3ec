"""Commands that send and receive: send, request, broadcast, publish, listen."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import AsJson, DataDir, FromAgent, Network, Node, Timeout, connect
from .outcome import reported
from .output import print_json
from .values import payload, plain, seconds, shown_payload

Agent = Annotated[int, typer.Argument(min=0, help="Id of the agent to send to.")]
Deadline = Annotated[
    str | None, typer.Option("--deadline", help="How long a durable message may wait, e.g. 1h.", show_default="1h")
]
Text = Annotated[str, typer.Argument(help="What to send; - reads standard input.")]


def send(
    agent: Agent,
    text: Text,
    ack: Annotated[bool, typer.Option("--ack", help="Wait until the agent has it.")] = False,
    durable: Annotated[
        bool, typer.Option("--durable", help="Store it; send it until the agent has handled it.")
    ] = False,
    deadline: Deadline = None,
    timeout: Timeout = "5s",
    from_agent: FromAgent = 0,
    data_dir: DataDir = None,
    network: Network = None,
    node_id: Node = None,
    as_json: AsJson = False,
) -> None:
    """Send a message to an agent.

    Example: mesh send 7 "start the report" --durable --deadline 2d
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        receipt = client.call(
            "send",
            timeout_s=seconds(timeout),
            agent=agent,
            ack=ack,
            durable=durable,
            deadline_s=seconds(deadline) if deadline is not None else None,
            from_agent=from_agent,
            **payload(text),
        )
        if as_json:
            print_json(receipt)
        elif durable:
            print(f"stored as {plain(receipt['message_id'])}")
        else:
            print(f"{receipt['status']} to agent {agent} on {plain(receipt['node_id'])}")


def request(
    agent: Agent,
    text: Text,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the answer part by part; --timeout is for each part.")
    ] = False,
    timeout: Timeout = "5s",
    from_agent: FromAgent = 0,
    data_dir: DataDir = None,
    network: Network = None,
    node_id: Node = None,
    as_json: AsJson = False,
) -> None:
    """Ask an agent and print its answer.

    With --stream and --json one object a line.

    Example: mesh request 42 "what is new?" --timeout 30s
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        if stream:
            idle_s = seconds(timeout)
            for part in client.stream(
                "request_parts", agent=agent, from_agent=from_agent, idle_s=idle_s, **payload(text)
            ):
                if as_json:
                    print_json(part)
                else:
                    print(part["text"] if "text" in part else shown_payload(part), flush=True)
            return
        reply = client.call("request", timeout_s=seconds(timeout), agent=agent, from_agent=from_agent, **payload(text))
        if as_json:
            print_json(reply)
        else:
            print(reply["text"] if "text" in reply else shown_payload(reply))


def broadcast(
    text: Text,
    from_agent: FromAgent = 0,
    data_dir: DataDir = None,
    network: Network = None,
    node_id: Node = None,
    as_json: AsJson = False,
) -> None:
    """Send a message to every agent on every node.

    Example: echo "maintenance at noon" | mesh broadcast -
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        receipt = client.call("broadcast", from_agent=from_agent, **payload(text))
        if as_json:
            print_json(receipt)
        else:
            print(f"broadcast {plain(receipt['message_id'])} handed to {receipt['nodes']} nodes")


def publish(
    group: Annotated[str, typer.Argument(help="Name of the group.")],
    text: Text,
    timeout: Timeout = "5s",
    from_agent: FromAgent = 0,
    data_dir: DataDir = None,
    network: Network = None,
    node_id: Node = None,
    as_json: AsJson = False,
) -> None:
    """Send a message to the subscribers of a group, and to one of each of its queues.

    Example: mesh publish alerts "disk almost full"
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        receipt = client.call(
            "publish", timeout_s=seconds(timeout), group=group, from_agent=from_agent, **payload(text)
        )
        if as_json:
            print_json(receipt)
        else:
            print(f"published {plain(receipt['message_id'])} to group {plain(group)}: {receipt['status']}")


def listen(
    agent: Annotated[int | None, typer.Option("--agent", min=1, help="Id to listen as; default: a free one.")] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many messages.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name to register under.")] = None,
    capability: Annotated[list[str] | None, typer.Option("--capability", "-c", help="Capability to offer.")] = None,
    reply: Annotated[str | None, typer.Option("--reply", help="Answer requests with this text.")] = None,
    group: Annotated[str | None, typer.Option("--group", help="Subscribe to this group instead.")] = None,
    queue: Annotated[str | None, typer.Option("--queue", help="With --group: share its messages.")] = None,
    data_dir: DataDir = None,
    network: Network = None,
    node_id: Node = None,
    as_json: AsJson = False,
) -> None:
    """Register a temporary agent on the running node, or subscribe to a group, and print what comes until Ctrl-C.

    With --json one object a line, the first says which agent listens.

    Example: mesh listen --agent 7 --count 1
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        items = client.stream(
            "listen", agent=agent, name=name, capabilities=capability, reply=reply, group=group, queue=queue
        )
        received = 0
        for item in items:
            if as_json:
                print_json(item)
            elif "listening" in item:
                what = f"as agent {item['listening']}" if group is None else f"to group {plain(group)}"
                typer.echo(f"listening {what} on {plain(item['node_id'])}", err=True)
            else:
                origin = f"{item['from_agent']}@{plain(item['from_node'])}"
                print(f"{origin} {item['message_type']}: {shown_payload(item)}", flush=True)
            received += "listening" not in item
            if count is not None and received >= count:
                return
