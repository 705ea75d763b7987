"""The clients of the scenario ``limits``. Each runs as a process: ``python -m benchmarks.limits.clients NAME ORDER``.

``ORDER`` is an :class:`~benchmarks.limits.workload.Order` as JSON; the report is one line of JSON. All send the same
scripts with the same keys and arguments; cgw's limiter besides does what it does for every request of a gateway.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import redis
import redis.asyncio
import trio

from benchmarks.limits.workload import (
    FEATURES,
    OPTIONS,
    RATE_LIMIT,
    ClientReport,
    Order,
    Tally,
    Window,
    ask_reservation,
    build_actors,
    build_group,
)
from cgw.limits.claims import ClaimGroup
from cgw.limits.limiter import Limiter
from cgw.limits.planner import Planner
from cgw.limits.plans import LimitPlan
from cgw.limits.reservations import ReservationIds
from cgw.limits.scripts import LimitScripts, load_scripts
from cgw.model import Actor, Feature, RateLimit
from cgw.redis.opening import Store, open_redis

__all__ = ["CLIENTS", "MAX_THREADS", "NotAdmittedError", "run_client"]

MAX_THREADS = 50
"""redis-py's threads, each with a connection, whatever the number of callers they serve."""
TIMEOUT_SECONDS = 2.0
"""Ten times cgw's own, and more: a machine that stalls must not turn a figure of Redis into one without Redis."""


class NotAdmittedError(Exception):
    """A pair was not admitted by the store. The limits are so large that this does not happen."""


class SizedLimiter(Limiter):
    """A limiter whose requests claim as many limits as the order says, where a gateway's claim two to four."""

    def __init__(self, store: Store, limits: int) -> None:
        super().__init__(store, OPTIONS)
        self._planner = SizedPlanner(store, OPTIONS, self._scripts, self._ids)
        self._planner.limits = limits


class SizedPlanner(Planner):
    """Plans with so many ``limits``."""

    limits = 1

    def _build_plan(self, actor: Actor, feature: Feature, rate_limit: RateLimit, provider: str) -> LimitPlan:
        return LimitPlan(rate_limit, [build_group(actor, self.limits)])


def run_cgw(order: Order) -> ClientReport:
    """cgw's limiter over its shared link: one task for each caller."""
    return trio.run(_run_cgw, order)


async def _run_cgw(order: Order) -> ClientReport:
    actors, window, tally = build_actors(), Window(order), Tally()

    async def call_again(caller: int, limiter: Limiter) -> None:
        number = caller % len(actors)
        actor, feature = actors[number], FEATURES[0]
        began_at = time.perf_counter_ns()
        while not window.is_over:
            admission = await limiter.admit(actor, feature, RATE_LIMIT)
            admitted_at = time.perf_counter_ns()
            if admission.is_local:
                raise NotAdmittedError("the store did not answer in time")
            await limiter.settle(admission, is_charged=True)
            began_at = tally.note(number, began_at, began_at, admitted_at)

    async with open_redis(f"unix://{order.socket}", timeout_seconds=TIMEOUT_SECONDS) as store:
        limiter = Limiter(store, OPTIONS) if order.limits == 3 else SizedLimiter(store, order.limits)
        async with trio.open_nursery() as upkeep:
            upkeep.start_soon(limiter.run)
            async with trio.open_nursery() as callers:
                for caller in range(order.callers):
                    callers.start_soon(call_again, caller, limiter)
                await trio.sleep(order.warm_ms / 1000)
                window.open()
                await trio.sleep(order.window_ms / 1000)
                window.close()
            upkeep.cancel_scope.cancel()
    return window.report([tally])


def run_threads(order: Order) -> ClientReport:
    """redis-py's client in threads, one for each caller up to 50; beyond that, callers take turns in their thread."""
    window, scripts = Window(order), load_scripts()
    groups = [build_group(actor, order.limits) for actor in build_actors()]
    count = min(order.callers, MAX_THREADS)
    tallies = [Tally() for _ in range(count)]
    pool = redis.ConnectionPool(
        connection_class=redis.UnixDomainSocketConnection, path=order.socket, max_connections=count
    )
    with redis.Redis(connection_pool=pool) as client, ThreadPoolExecutor(count) as threads:
        served = [
            threads.submit(_serve_callers, client, scripts, groups, window, tally, range(first, order.callers, count))
            for first, tally in enumerate(tallies)
        ]
        time.sleep(order.warm_ms / 1000)
        window.open()
        time.sleep(order.window_ms / 1000)
        window.close()
        for future in served:
            future.result()
    pool.disconnect()
    return window.report(tallies)


def _serve_callers(
    client: redis.Redis, scripts: LimitScripts, groups: list[ClaimGroup], window: Window, tally: Tally, callers: range
) -> None:
    admit, settle = (client.register_script(script.text) for script in (scripts.admit, scripts.settle))
    ids, wanted_at = ReservationIds(), [time.perf_counter_ns()] * len(callers)
    while not window.is_over:
        for place, caller in enumerate(callers):
            number = caller % len(groups)
            began_at = time.perf_counter_ns()
            reservation = ask_reservation(groups[number], ids)
            call = reservation.build_admit(scripts)
            if admit(keys=call.keys, args=call.args)[0] != 1:
                raise NotAdmittedError("a limit was used up")
            admitted_at = time.perf_counter_ns()
            call = reservation.build_settle(scripts, is_charged=True)
            settle(keys=call.keys, args=call.args)
            wanted_at[place] = tally.note(number, wanted_at[place], began_at, admitted_at)


def run_trio_threads(order: Order) -> ClientReport:
    """redis-py's client as a Trio program would use it: each call goes to a thread, at most 50 at a time."""
    return trio.run(_run_trio_threads, order)


async def _run_trio_threads(order: Order) -> ClientReport:
    window, tally, scripts, ids = Window(order), Tally(), load_scripts(), ReservationIds()
    groups = [build_group(actor, order.limits) for actor in build_actors()]
    count = min(order.callers, MAX_THREADS)
    limiter = trio.CapacityLimiter(count)
    pool = redis.ConnectionPool(
        connection_class=redis.UnixDomainSocketConnection, path=order.socket, max_connections=count
    )
    client = redis.Redis(connection_pool=pool)
    admit, settle = (client.register_script(script.text) for script in (scripts.admit, scripts.settle))

    async def call_again(caller: int) -> None:
        number = caller % len(groups)
        began_at = time.perf_counter_ns()
        while not window.is_over:
            reservation = ask_reservation(groups[number], ids)
            call = reservation.build_admit(scripts)
            answer = await trio.to_thread.run_sync(admit, call.keys, call.args, limiter=limiter)
            if answer[0] != 1:
                raise NotAdmittedError("a limit was used up")
            admitted_at = time.perf_counter_ns()
            call = reservation.build_settle(scripts, is_charged=True)
            await trio.to_thread.run_sync(settle, call.keys, call.args, limiter=limiter)
            began_at = tally.note(number, began_at, began_at, admitted_at)

    async with trio.open_nursery() as callers:
        for caller in range(order.callers):
            callers.start_soon(call_again, caller)
        await trio.sleep(order.warm_ms / 1000)
        window.open()
        await trio.sleep(order.window_ms / 1000)
        window.close()
    pool.disconnect()
    return window.report([tally])


def run_asyncio(order: Order) -> ClientReport:
    """redis-py's asyncio client: one task and at most one connection for each caller."""
    return asyncio.run(_run_asyncio(order))


async def _run_asyncio(order: Order) -> ClientReport:
    window, tally, scripts, ids = Window(order), Tally(), load_scripts(), ReservationIds()
    groups = [build_group(actor, order.limits) for actor in build_actors()]
    pool = redis.asyncio.ConnectionPool(
        connection_class=redis.asyncio.UnixDomainSocketConnection, path=order.socket, max_connections=order.callers
    )
    client = redis.asyncio.Redis(connection_pool=pool)
    admit, settle = (client.register_script(script.text) for script in (scripts.admit, scripts.settle))

    async def call_again(caller: int) -> None:
        number = caller % len(groups)
        began_at = time.perf_counter_ns()
        while not window.is_over:
            reservation = ask_reservation(groups[number], ids)
            call = reservation.build_admit(scripts)
            if (await admit(keys=call.keys, args=call.args))[0] != 1:
                raise NotAdmittedError("a limit was used up")
            admitted_at = time.perf_counter_ns()
            call = reservation.build_settle(scripts, is_charged=True)
            await settle(keys=call.keys, args=call.args)
            began_at = tally.note(number, began_at, began_at, admitted_at)

    async with asyncio.TaskGroup() as callers:
        for caller in range(order.callers):
            callers.create_task(call_again(caller))
        await asyncio.sleep(order.warm_ms / 1000)
        window.open()
        await asyncio.sleep(order.window_ms / 1000)
        window.close()
    await pool.disconnect()
    return window.report([tally])


CLIENTS: dict[str, Callable[[Order], ClientReport]] = {
    "cgw": run_cgw,
    "redis-py-threads": run_threads,
    "redis-py-trio": run_trio_threads,
    "redis-py-asyncio": run_asyncio,
}


def run_client(name: str, order: Order) -> ClientReport:
    """Run one client in this process, with the garbage collector set as ``cgw serve`` sets it, whoever it is."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    return CLIENTS[name](order)


def main() -> None:
    """One line of JSON on standard output."""
    report = run_client(sys.argv[1], msgspec.json.decode(sys.argv[2], type=Order))
    print(msgspec.json.encode(report).decode(), flush=True)


if __name__ == "__main__":
    main()
