"""The proxy that tests put between two parties does what it says to both."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.proxy import TcpProxy

PATIENCE = 30


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """A server that sends back what it gets; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[TcpProxy]:
    proxy = TcpProxy(echo).start()
    yield proxy
    proxy.close()


async def said_and_heard(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes = b"hello"
) -> bytes:
    writer.write(data)
    return await asyncio.wait_for(reader.readexactly(len(data)), PATIENCE)


async def test_it_forwards_both_ways_and_passes_the_end_on(proxy: TcpProxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    large = b"x" * 3_000_000
    assert await said_and_heard(reader, writer, large) == large
    assert (proxy.accepted, proxy.open_connections, proxy.to_client_bytes) == (1, 1, len(large))
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
    writer.close()


async def test_cut_resets_and_refuses_until_it_is_restored(proxy: TcpProxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await said_and_heard(reader, writer)
    await asyncio.to_thread(proxy.cut)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(1), PATIENCE)
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    await asyncio.to_thread(proxy.restore)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await said_and_heard(reader, writer) == b"hello"
    writer.close()


async def test_a_reset_is_no_cut(proxy: TcpProxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await said_and_heard(reader, writer)
    await asyncio.to_thread(proxy.reset)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(1), PATIENCE)
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await said_and_heard(reader, writer) == b"hello"
    writer.close()


async def test_stalled_it_holds_what_comes_and_takes_connections(proxy: TcpProxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await said_and_heard(reader, writer)
    proxy.stall()
    writer.write(b"held")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.5)
    other_reader, other_writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await asyncio.to_thread(proxy.restore)
    assert await asyncio.wait_for(reader.readexactly(4), PATIENCE) == b"held"
    assert await said_and_heard(other_reader, other_writer) == b"hello"
    for end in (writer, other_writer):
        end.close()


async def test_slowed_it_takes_the_time_that_was_asked_for(proxy: TcpProxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await said_and_heard(reader, writer)
    proxy.slow(20_000)
    began = time.monotonic()
    assert len(await said_and_heard(reader, writer, b"x" * 10_000)) == 10_000
    assert time.monotonic() - began >= 0.5
    await asyncio.to_thread(proxy.restore)
    assert len(await said_and_heard(reader, writer, b"x" * 1_000_000)) == 1_000_000
    writer.close()


async def test_closed_it_leaves_no_port(echo: int) -> None:
    proxy = TcpProxy(echo).start()
    proxy.close()
    proxy.close()
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", proxy.port))
