"""A producer in a process of its own: reads orders as lines of JSON, publishes, answers with what it took.

`python -m benchmarks.producer MODULE`; the module has an async `publish(session, number, text)`.
"""

import asyncio
import gc
import importlib
import json
import sys
import time
from typing import Any

import uvloop

from benchmarks.emitting import PADDING, Publish, emit

SESSIONS = 1000


async def alone(publish: Publish, count: int) -> dict[str, float]:
    """Publish one after the other, each awaited."""
    began, cpu = time.perf_counter(), time.process_time()
    for number in range(count):
        await publish(f"bench-{number % SESSIONS}", number, PADDING)
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}


async def piled(publish: Publish, count: int, at_once: int) -> dict[str, float]:
    """Let so many turns write at once, each awaiting every publish of its own."""

    async def write(writer: int) -> None:
        for number in range(writer, count, at_once):
            await publish(f"bench-{number % SESSIONS}", number, PADDING)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(write(writer) for writer in range(at_once)))
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}


WORK = {"emit": emit, "alone": alone, "piled": piled}


async def serve(module: Any) -> None:
    """Answer orders until the input ends; the first line says that the producer is ready."""
    loop = asyncio.get_running_loop()
    if hasattr(module, "start"):
        await module.start()
    # What lives now lives on; without this a collection of everything is measured as latency.
    gc.collect()
    gc.freeze()
    answer: dict[str, float] = {}
    while True:
        print(json.dumps(answer), flush=True)
        line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:
            return
        order = json.loads(line)
        answer = await WORK[order.pop("do")](module.publish, **order)


if __name__ == "__main__":
    uvloop.run(serve(importlib.import_module(sys.argv[1])))
