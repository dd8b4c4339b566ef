"""Tickets: one stream each, for a short while, whoever presents them first."""

import threading
from datetime import timedelta

import pytest
from django.db import connections
from django.utils import timezone
from pytest_django.fixtures import Settings

from relay.credentials import Credentials, Identity
from relay.exceptions import AnonymousRejected, SessionForbidden, TicketInvalid
from relay.models import Session, Ticket
from relay.sessions import session_by_ticket, session_of
from relay.tickets import issue_ticket, redeem_ticket

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def session() -> Session:
    return session_of(Identity("user-ada", "Ada", "paid"), Credentials(), create=True)


def test_a_ticket_opens_its_session_once(session: Session) -> None:
    ticket = issue_ticket(session)
    assert ticket not in Ticket.objects.get().digest
    assert session_by_ticket(Credentials(ticket=ticket), "sse") == session
    for used in (ticket, "never given out"):
        with pytest.raises(TicketInvalid, match="get a new one"):
            redeem_ticket(used)


def test_an_old_ticket_opens_nothing_and_is_cleared_away(session: Session) -> None:
    ticket = issue_ticket(session)
    Ticket.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    with pytest.raises(TicketInvalid, match="older than 30 seconds"):
        redeem_ticket(ticket)
    issue_ticket(session)
    Ticket.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    issue_ticket(session)
    assert Ticket.objects.count() == 1


def test_of_many_that_come_at_once_one_gets_in(session: Session) -> None:
    ticket = issue_ticket(session)
    together, admitted = threading.Barrier(6), []

    def come() -> None:
        together.wait(20)
        try:
            admitted.append(redeem_ticket(ticket))
        except TicketInvalid:
            pass
        finally:
            connections.close_all()

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert admitted == [session]


def test_a_ticket_decides_alone(session: Session, settings: Settings) -> None:
    other = session_of(None, Credentials(), create=True)
    with pytest.raises(SessionForbidden):
        session_by_ticket(Credentials(ticket=issue_ticket(session), session_id=other.session_id), "sse")
    found = session_by_ticket(Credentials(ticket=issue_ticket(session), login_key="of another"), "sse")
    assert found == session
    settings.RELAY = {"REJECT_ANONYMOUS_SSE": True}
    with pytest.raises(AnonymousRejected):
        session_by_ticket(Credentials(ticket=issue_ticket(other)), "sse")
    assert session_by_ticket(Credentials(ticket=issue_ticket(other)), "ws") == other


def test_which_of_several_proofs_counts() -> None:
    query = Credentials(ticket="t", session_id="s")
    assert query.presenting(None, None, None, None).ticket == "t"
    assert query.presenting("token", None, None, None).ticket == ""
    assert query.presenting(None, None, "newer", None).ticket == "newer"
    cookie = Credentials(bearer_token="of a cookie", token_by_cookie=True)
    assert cookie.presenting(None, None, None, None).token_by_cookie
    given = cookie.presenting(None, None, "t", None)
    assert (given.ticket, given.bearer_token, given.token_by_cookie) == ("t", "", False)
