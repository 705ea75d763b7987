"""A real cluster of masters on loopback for tests, and moving its slots as operators do."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis
from attrs import frozen

from cgw.redis.slots import SLOTS
from tests.support.redis_server import RedisServer, ask_server, run_redis_server


def find_free_ports(count: int) -> list[int]:
    """Return TCP ports of loopback that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


BUS_DISTANCE = 10_000
"""The distance between the port of a node and that of its cluster bus; fixed before Redis 7."""


def find_node_ports(count: int) -> list[int]:
    """Return ports of loopback that are free now, each together with the port of its cluster bus."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + BUS_DISTANCE))
            except OSError:
                continue
        if port not in ports and port - BUS_DISTANCE not in ports and port + BUS_DISTANCE not in ports:
            ports.append(port)
    return ports


@frozen
class ClusterNode:
    """One server of the cluster."""

    server: RedisServer
    port: int
    id: str

    @property
    def place(self) -> str:
        """Its ``host:port``."""
        return f"127.0.0.1:{self.port}"

    async def ask(self, *command: str | int) -> object:
        """Return this node's reply; error replies are raised."""
        return await ask_server(self.server.path, *command)


@frozen
class RedisCluster:
    """A running cluster; node *n* of *N* begins with the *n*-th part of the slots."""

    nodes: Sequence[ClusterNode]

    @property
    def url(self) -> str:
        """Its address as cgw takes it: all nodes by name."""
        return f"redis+cluster://{','.join(node.place for node in self.nodes)}"

    async def find_owner(self, slot: int) -> ClusterNode:
        """Return the node that serves ``slot`` according to the first node."""
        reply = await self.nodes[0].ask("CLUSTER", "SLOTS")
        assert isinstance(reply, list)
        port = next(entry[2][1] for entry in reply if entry[0] <= slot <= entry[1])
        return next(node for node in self.nodes if node.port == port)

    def others(self, node: ClusterNode) -> list[ClusterNode]:
        """Return the other nodes."""
        return [other for other in self.nodes if other is not node]

    async def begin_move(self, slot: int, source: ClusterNode, target: ClusterNode) -> None:
        """Begin to move a slot; from here on ``source`` answers ASK for keys that it does not have."""
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    async def move_keys(self, slot: int, source: ClusterNode, target: ClusterNode, most: int = 1_000) -> int:
        """Move at most ``most`` keys of a slot; return the number of keys moved."""
        keys = await source.ask("CLUSTER", "GETKEYSINSLOT", slot, most)
        assert isinstance(keys, list)
        names = [key.decode() for key in keys]
        if names:
            await source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *names)
        return len(names)

    async def end_move(self, slot: int, target: ClusterNode) -> None:
        """Assign the slot to ``target``, at the target first, so that one node serves it at any time."""
        for node in (target, *self.others(target)):
            await node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    async def move_slot(self, slot: int, source: ClusterNode, target: ClusterNode) -> None:
        """Move a slot with all its keys, as ``redis-cli --cluster reshard`` does."""
        await self.begin_move(slot, source, target)
        while await self.move_keys(slot, source, target):
            pass
        await self.end_move(slot, target)


@contextmanager
def run_redis_cluster(folder: Path, masters: int = 3) -> Iterator[RedisCluster]:
    """Run servers in ``folder`` (its path must be short) and make them one cluster; all are killed at the end.

    Takes two seconds, because a new node refuses to serve as master for that long.
    """
    ports = find_node_ports(masters)
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(run_cluster_node(folder / f"n{number}", port)) for number, port in enumerate(ports)
        ]
        _join(nodes)
        yield RedisCluster(nodes)


@contextmanager
def run_cluster_node(folder: Path, port: int) -> Iterator[ClusterNode]:
    """Run one server of a cluster, with the state that an earlier run left in ``folder``; killed at the end."""
    folder.mkdir(exist_ok=True)
    options = ("--port", str(port), "--bind", "127.0.0.1", "--cluster-enabled", "yes")
    behaviour = ("--cluster-require-full-coverage", "no", "--cluster-node-timeout", "1000")
    with run_redis_server(folder, *options, *behaviour, "--repl-diskless-sync-delay", "0") as server:
        yield ClusterNode(server, port, _ask_blocking(server, "CLUSTER", "MYID").decode())


def _ask_blocking(server: RedisServer, *command: str | int) -> bytes:
    with redis.Redis(unix_socket_path=str(server.path)) as client:
        # As separate words: redis-py converts the replies of the commands that it knows.
        reply: bytes = client.execute_command(*command)
        return reply


def _join(nodes: Sequence[ClusterNode]) -> None:
    for number, node in enumerate(nodes):
        first, end = (-(-part * SLOTS // len(nodes)) for part in (number, number + 1))
        _ask_blocking(node.server, "CLUSTER", "ADDSLOTS", *range(first, end))  # ADDSLOTSRANGE came with Redis 7
        _ask_blocking(node.server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for node in nodes[1:]:
        _ask_blocking(nodes[0].server, "CLUSTER", "MEET", "127.0.0.1", node.port)
    deadline = time.monotonic() + 15
    while not all(_is_whole(node) for node in nodes):
        assert time.monotonic() < deadline, "the nodes did not become a cluster"
        time.sleep(0.02)


def _is_whole(node: ClusterNode) -> bool:
    info = _ask_blocking(node.server, "CLUSTER", "INFO")
    return b"cluster_state:ok" in info and f"cluster_slots_ok:{SLOTS}".encode() in info
