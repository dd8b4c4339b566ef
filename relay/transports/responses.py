"""What the HTTP streams share: the headers of a stream, and headers as ASGI wants them."""

from collections.abc import Iterable

from django.http import HttpResponse

Headers = list[tuple[bytes, bytes]]

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    # A proxy or a middleware that compresses would hold frames back.
    "Content-Encoding": "identity",
    "X-Accel-Buffering": "no",
}


def headers_of(response: HttpResponse) -> Headers:
    """Return a response's headers and cookies as pairs of bytes."""
    headers: Iterable[tuple[str, str]] = response.items()
    encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    cookies = [
        (b"set-cookie", cookie.OutputString().encode("latin-1")) for cookie in response.cookies.values()
    ]
    return encoded + cookies
