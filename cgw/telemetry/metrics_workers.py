"""The metrics of all processes that share a port, in one scrape.

The kernel gives a scrape to any one of them. So each listens on a Unix socket in the data directory, and the one that
is scraped asks the others; every sample gets a label that says whose it is::

    <data directory>/metrics/<pid>-<random>.sock        one connection: the readings of that process, then its end

Only processes of the same user can reach these sockets. One that does not answer in time is left out.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
import trio

from cgw.errors import explain_os_error
from cgw.lifetime import open_background_task
from cgw.telemetry.metrics import Exemplar, HistogramValue, Metric, MetricReading, Metrics, gauge

WORKERS = gauge("cgw_workers", "Processes whose metrics are in this scrape, where several share a port.")

ANSWER_SECONDS = 2.0
"""The time that another process may take: a little more than its disk may keep it."""

MAX_ANSWER_BYTES = 32 * 2**20
MAX_WORKERS = 256
RECEIVE_BYTES = 2**18
BACKLOG = 16

_SUFFIX = ".sock"

logger = logging.getLogger("cgw.metrics")


class _SentHistogram(msgspec.Struct, array_like=True):
    counts: tuple[int, ...]
    sum: float
    exemplars: tuple[Exemplar | None, ...]


class _Sent(msgspec.Struct, array_like=True):
    """A reading between processes, which may be of different versions: metrics go by their names."""

    name: str
    labels: tuple[str, ...]
    value: float | _SentHistogram


_decoder = msgspec.msgpack.Decoder(list[_Sent])


class Workers:
    """The processes that share a data directory. Made by :func:`open_workers`."""

    def __init__(self, metrics: Metrics, folder: Path, declared: Iterable[Metric]) -> None:
        self._metrics = metrics
        self._folder = folder
        self._declared: Mapping[str, Metric] = {metric.name: metric for metric in declared}
        self.name = f"{os.getpid()}-{secrets.token_hex(2)}"

    async def take_all(self) -> list[MetricReading]:
        """Return the readings of all processes, each with its worker. Never raises; takes two seconds at most."""
        found = {self.name: await self._metrics.take_all()}
        async with trio.open_nursery() as nursery:
            for name in self._list_others():
                nursery.start_soon(self._ask, name, found)
        readings = [one._replace(worker=name) for name, own in sorted(found.items()) for one in own]
        return [WORKERS.read(len(found)), *readings]

    async def serve(self, listener: trio.SocketListener) -> None:
        """Answer other processes until cancelled."""
        await trio.serve_listeners(self._answer, [listener])

    async def _answer(self, stream: trio.SocketStream) -> None:
        with trio.move_on_after(ANSWER_SECONDS), suppress(trio.BrokenResourceError):
            async with stream:
                await stream.send_all(encode_readings(await self._metrics.take_all()))

    def _list_others(self) -> list[str]:
        try:
            names = os.listdir(self._folder)
        except OSError:
            return []
        stems = sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
        return [stem for stem in stems if stem != self.name][:MAX_WORKERS]

    async def _ask(self, name: str, found: dict[str, list[MetricReading]]) -> None:
        with trio.move_on_after(ANSWER_SECONDS):
            try:
                answer = await self._fetch(name)
                found[name] = list(self._decode(answer))
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:  # its process has died
                    self._path(name).unlink(missing_ok=True)
            except (trio.BrokenResourceError, msgspec.MsgspecError, ValueError) as error:
                logger.warning("the metrics of process %s are left out: %s", name, error)

    async def _fetch(self, name: str) -> bytes:
        with trio.socket.socket(trio.socket.AF_UNIX) as sock, _open_short(self._path(name)) as path:
            await sock.connect(path)
            answer = bytearray()
            while data := await sock.recv(RECEIVE_BYTES):
                answer += data
                if len(answer) > MAX_ANSWER_BYTES:
                    raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
            return bytes(answer)

    def _decode(self, answer: bytes) -> Iterable[MetricReading]:
        for sent in _decoder.decode(answer):
            metric = self._declared.get(sent.name)
            if metric is None or len(metric.labels) != len(sent.labels):
                continue  # of another version
            if not isinstance(sent.value, _SentHistogram):
                yield MetricReading(metric, sent.labels, sent.value)
            elif len(sent.value.counts) == len(metric.bounds) + 1:
                value = HistogramValue(sent.value.counts, sent.value.sum, sent.value.exemplars)
                yield MetricReading(metric, sent.labels, value)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"

    def bind(self) -> trio.SocketListener:
        """Return the listener of this process. Raises :exc:`OSError`."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with socket.socket(socket.AF_UNIX) as sock, _open_short(self._path(self.name)) as path:
            sock.bind(path)
            sock.listen(BACKLOG)
            return trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))

    def remove(self) -> None:
        """Remove the socket of this process."""
        self._path(self.name).unlink(missing_ok=True)


@contextmanager
def _open_short(path: Path) -> Iterator[str]:
    """Yield a name of ``path`` that fits into a socket's address, which has 107 bytes at most."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def encode_readings(readings: Iterable[MetricReading]) -> bytes:
    """Return readings as one process sends them to another."""
    return msgspec.msgpack.encode([_Sent(one.metric.name, one.labels, _pack(one.value)) for one in readings])


def _pack(value: float | HistogramValue) -> float | _SentHistogram:
    if isinstance(value, HistogramValue):
        return _SentHistogram(value.counts, value.sum, value.exemplars)
    return float(value)


@asynccontextmanager
async def open_workers(metrics: Metrics, folder: Path, declared: Iterable[Metric]) -> AsyncIterator[Workers | None]:
    """Let the processes that share ``folder`` read each other's metrics, for the length of the block.

    ``declared`` are the metrics that may come. Yields ``None`` where there can be no socket: then a scrape has this
    process only, and the log says so.
    """
    workers = Workers(metrics, folder, declared)
    try:
        listener = workers.bind()
    except OSError as error:
        logger.warning("scrapes show one process only: no socket in %s: %s", folder, explain_os_error(error))
        yield None
        return
    try:
        async with open_background_task(partial(workers.serve, listener)):
            yield workers
    finally:
        listener.socket.close()
        workers.remove()
