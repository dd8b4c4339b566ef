"""The cookie that lets a browser keep its anonymous session."""

from django.conf import settings
from django.http.response import HttpResponseBase

from .conf import relay_settings
from .models import Session


def remember_session(response: HttpResponseBase, session: Session) -> None:
    """Set the cookie of an anonymous session; no script can read it, no other site can send it."""
    conf = relay_settings()
    response.set_cookie(
        conf.SESSION_COOKIE_NAME,
        session.session_id,
        max_age=conf.SESSION_COOKIE_DAYS * 86_400,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )
