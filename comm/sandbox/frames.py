"""Frames between a sandbox and its supervisor: a length of four bytes, then a MessagePack map."""

import asyncio
import struct
from typing import Any

import msgspec

FRAME_BYTES = 8 * 1024 * 1024
"""The largest frame: an event with a large card; attachments travel in pieces."""
PIECE_BYTES = 512 * 1024

_LENGTH = struct.Struct("!I")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[str, Any])


class FrameInvalid(Exception):
    """What came is no frame: too large, cut off, or not a map."""


def pack(message: dict[str, Any]) -> bytes:
    """Return a frame. Errors: FrameInvalid when it would be too large, TypeError for what cannot travel."""
    body = _encoder.encode(message)
    if len(body) > FRAME_BYTES:
        raise FrameInvalid(
            f"a frame of {len(body):,} bytes is too large; at most {FRAME_BYTES:,} may travel at once"
        )
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Return the next frame, None at the end of the stream. Errors: FrameInvalid."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise FrameInvalid("the stream broke off inside a frame") from None
        return None
    except ConnectionError:
        return None
    if length > FRAME_BYTES:
        raise FrameInvalid(f"a frame of {length:,} bytes is too large")
    try:
        message: dict[str, Any] = _decoder.decode(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        raise FrameInvalid("the stream broke off inside a frame") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameInvalid(f"a frame is not a map ({error})") from None
    return message
