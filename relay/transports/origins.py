"""Which pages may open a socket with the cookies of a visitor: no CORS rule of a browser guards those."""

import re
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest


def origin_allowed(request: HttpRequest) -> bool:
    """Tell whether the page that opens a socket is one of ours, or of an origin in the CORS settings.

    Programs outside browsers send no Origin.
    """
    origin = request.headers.get("Origin", "")
    if not origin or origin in settings.CORS_ALLOWED_ORIGINS or _is_own(request, origin):
        return True
    return any(re.match(pattern, origin) for pattern in settings.CORS_ALLOWED_ORIGIN_REGEXES)


def _is_own(request: HttpRequest, origin: str) -> bool:
    try:
        return urlsplit(origin).netloc.lower() == request.get_host().lower()
    except (DisallowedHost, ValueError):
        return False
