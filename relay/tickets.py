"""Tickets: who cannot send a token with its stream asks for a ticket first, and puts that into the URL."""

import hashlib
import secrets
from datetime import timedelta

from django.utils import timezone

from .exceptions import TicketInvalid
from .models import Session, Ticket

TICKET_SECONDS = 30


def issue_ticket(session: Session) -> str:
    """Return a ticket that opens one stream of a session within TICKET_SECONDS; only its hash is kept."""
    now = timezone.now()
    Ticket.objects.filter(expires_at__lt=now).delete()
    ticket = secrets.token_urlsafe(32)
    Ticket.objects.create(
        digest=_digest(ticket), session=session, expires_at=now + timedelta(seconds=TICKET_SECONDS)
    )
    return ticket


def redeem_ticket(ticket: str) -> Session:
    """Return the session of a ticket, which is used up with that, on every replica. Errors: TicketInvalid."""
    rows = Ticket.objects.filter(digest=_digest(ticket))
    row = rows.select_related("session").first()
    # Whoever deletes it has it: of two that come at once, one.
    taken, _ = rows.delete()
    if row is None or not taken or row.expires_at < timezone.now():
        raise TicketInvalid(f"The ticket was used, or is older than {TICKET_SECONDS} seconds; get a new one.")
    return row.session


def _digest(ticket: str) -> str:
    return hashlib.sha256(ticket.encode()).hexdigest()
