"""The recordings in the admin, to look at: nothing here is added, changed or deleted."""

import json
from datetime import UTC, datetime
from functools import reduce
from operator import or_
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.db.models.expressions import Combinable
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from comm.groups import PROJECT_PREFIX
from comm.models import Turn

from .actions import export_jsonl, replay_to_stream
from .browsing import LISTED_ROWS, TIMED, BoundedPaginator, BrowsedQuerySet
from .filters import (
    ConversationFilter,
    MarkerFilter,
    RouteFilter,
    SessionFilter,
    TenantFilter,
    TurnFilter,
    TypeFilter,
    UserFilter,
    only,
    shortened,
)
from .lag import lag_text
from .models import RecordedEnvelope, RecordedGap, RecorderRun, ReplayRequest
from .timeline import timeline_of

SEARCHED = ("turn_id", "conversation_id", "session_id", "user", "type")


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Shows rows that are evidence: who may view them may do no more."""

    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator
    actions = None

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Rows are written by the recorder."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A recording is what was."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A missing row would be taken for a lost one."""
        return False


@admin.register(RecordedEnvelope)
class RecordedEnvelopeAdmin(ReadOnlyAdmin):
    """What was delivered, event by event.

    Session ids are shown in part: who holds the id of an anonymous session holds the session. Everything that
    the list asks is answered by an index, or by the first LISTED_ROWS rows that fit.
    """

    listed_rows = LISTED_ROWS
    list_display = (
        "time", "type", "marker", "excerpt", "agent", "turn", "conversation", "session", "route",
    )  # fmt: skip
    list_display_links = ("time",)
    list_filter = (
        TurnFilter, ConversationFilter, SessionFilter, "timestamp", RouteFilter, TypeFilter, MarkerFilter,
        TenantFilter, UserFilter,
    )  # fmt: skip
    search_fields = SEARCHED
    search_help_text = "A whole turn id, conversation id, session id, user or type"
    date_hierarchy = "timestamp"
    sortable_by = ("time",)
    fields = (
        ("time", "position"), ("type", "route"), ("agent", "marker"), ("tenant", "project"),
        ("user", "session"), "turn_and_its_row", "whole_conversation", "delivered_to", "envelope",
    )  # fmt: skip
    readonly_fields = (
        "time", "position", "type", "route", "agent", "marker", "tenant", "project", "user", "session",
        "turn_and_its_row", "whole_conversation", "delivered_to", "envelope",
    )  # fmt: skip

    actions = (export_jsonl, replay_to_stream)

    class Media:
        css = {"all": ["recorder/admin.css"]}

    def get_urls(self) -> list[URLPattern]:
        """The model's pages, and the timeline of a turn."""
        timeline = self.admin_site.admin_view(self.timeline_view)
        name = "recorder_recordedenvelope_timeline"
        return [path("turn/<str:turn_id>/", timeline, name=name), *super().get_urls()]

    def timeline_view(self, request: HttpRequest, turn_id: str) -> HttpResponse:
        """Show a turn as a timeline."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        timeline = timeline_of(turn_id)
        if not timeline.entries:
            raise Http404(f"nothing of turn {turn_id} is recorded")
        context = {
            **self.admin_site.each_context(request),
            "title": f"Turn {turn_id}",
            "opts": self.model._meta,
            "turn_id": turn_id,
            "turn": Turn.objects.filter(turn_id=turn_id).first(),
            "timeline": timeline,
        }
        return TemplateResponse(request, "admin/recorder/recordedenvelope/timeline.html", context)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> TemplateResponse:
        """The list, and how far its rows are behind."""
        return super().changelist_view(request, {**(extra_context or {}), "recorder_lag": lag_text()})

    def get_queryset(self, request: HttpRequest) -> QuerySet[RecordedEnvelope]:
        """All rows, with a date hierarchy that does not read them all."""
        return BrowsedQuerySet(RecordedEnvelope)

    def get_ordering(self, request: HttpRequest) -> list[str | Combinable]:
        """Newest first; within a turn, a conversation or a session as clients saw it."""
        linked = (TurnFilter, ConversationFilter, SessionFilter)
        if any(request.GET.get(linking.parameter_name) for linking in linked):
            return ["epoch", "seq", "id"]
        timed = next((column for column in TIMED if request.GET.get(column)), None)
        return [*([timed] if timed else []), "-timestamp", "-id"]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[RecordedEnvelope], search_term: str
    ) -> tuple[QuerySet[RecordedEnvelope], bool]:
        """Find the columns that have the term, one seek in an index for each, and search only in those.

        One query over all of them reads every row where the database cannot join its indexes.
        """
        term = search_term.strip()
        if not term:
            return queryset, False
        having = [column for column in SEARCHED if _is_there(column, term)]
        if not having:
            return queryset.none(), False
        if len(having) == 1 and having[0] in TIMED:
            return queryset.filter(only(having[0], term)).order_by(having[0], "-timestamp", "-id"), False
        return queryset.filter(reduce(or_, (Q(**{column: term}) for column in having))), False

    @admin.display(description="time (UTC)", ordering="timestamp")
    def time(self, row: RecordedEnvelope) -> str:
        """When it was emitted, to the millisecond."""
        return _readable(row.timestamp)

    @admin.display(description="conversation")
    def conversation(self, row: RecordedEnvelope) -> str:
        """A link to all events of the conversation."""
        return _events(shortened(row.conversation_id), conversation_id=row.conversation_id)

    @admin.display(description="conversation")
    def whole_conversation(self, row: RecordedEnvelope) -> str:
        """The same link, with the whole id."""
        return _events(row.conversation_id, conversation_id=row.conversation_id)

    @admin.display(description="turn")
    def turn(self, row: RecordedEnvelope) -> str:
        """A link to the turn's timeline."""
        if not row.turn_id:
            return ""
        url = reverse("admin:recorder_recordedenvelope_timeline", args=[row.turn_id])
        return format_html('<a href="{}">{}</a>', url, row.turn_id)

    @admin.display(description="turn")
    def turn_and_its_row(self, row: RecordedEnvelope) -> str:
        """Links to the turn's timeline, to all its events, and to the turn itself where there is one."""
        listed = _events("all its events", turn_id=row.turn_id) if row.turn_id else ""
        events = format_html("{} · {}", self.turn(row), listed) if row.turn_id else ""
        turn = Turn.objects.filter(turn_id=row.turn_id).first() if row.turn_id else None
        if turn is None or not self.admin_site.is_registered(Turn):
            return events
        url = reverse(f"{self.admin_site.name}:comm_turn_change", args=[turn.pk])
        return format_html('{} · <a href="{}">the turn itself ({})</a>', events, url, turn.status)

    @admin.display(description="session")
    def session(self, row: RecordedEnvelope) -> str:
        """A link to all events of the session."""
        return _events(shortened(row.session_id), session_of=row.pk)

    @admin.display(description="text")
    def excerpt(self, row: RecordedEnvelope) -> str:
        """What the envelope says, in a line."""
        return row.excerpt

    @admin.display(description="position")
    def position(self, row: RecordedEnvelope) -> str:
        """Where it stands in its session's log."""
        return "none: sent to the project" if row.position is None else str(row.position)

    @admin.display(description="delivered to")
    def delivered_to(self, row: RecordedEnvelope) -> str:
        """One peer, the session, or the project."""
        if row.position is None:
            return "the streams of the project that asked for such events"
        return f"the peer {row.target_sid}" if row.target_sid else "the session"

    @admin.display(description="envelope")
    def envelope(self, row: RecordedEnvelope) -> str:
        """The envelope's JSON, indented."""
        text = json.dumps(row.envelope, indent=2, ensure_ascii=False)
        return format_html('<pre class="recorded-envelope">{}</pre>', _without_session(text, row.session_id))


@admin.register(RecordedGap)
class RecordedGapAdmin(ReadOnlyAdmin):
    """What is known to be missing."""

    list_display = ("noted_at", "whose", "begin", "end", "missing", "reason")
    list_filter = ("noted_at",)
    search_fields = ("session_id__exact",)
    ordering = ("-id",)
    sortable_by = ()
    fields = readonly_fields = list_display

    @admin.display(description="session")
    def whose(self, gap: RecordedGap) -> str:
        """The session's id, in part; or who else may miss something."""
        if not gap.session_id:
            return "every session"
        if gap.session_id.startswith(PROJECT_PREFIX):
            return "events of a project"
        return shortened(gap.session_id)

    @admin.display(description="from")
    def begin(self, gap: RecordedGap) -> str:
        """The first position that is missing, or the time from which on something may be."""
        return _bound(gap.first)

    @admin.display(description="to")
    def end(self, gap: RecordedGap) -> str:
        """The last position that is missing, or the time up to which something may be."""
        return _bound(gap.last)

    @admin.display(description="events")
    def missing(self, gap: RecordedGap) -> str:
        """How many are missing, where it is known."""
        return str(gap.events) if gap.events else "nobody knows how many"


@admin.register(RecorderRun)
class RecorderRunAdmin(ReadOnlyAdmin):
    """The lives of what records: one that did not end cleanly may have lost its last rows."""

    list_display = ("started", "what", "recorded_until", "ended", "how")
    ordering = ("-started_ms", "-id")
    sortable_by = ()
    fields = readonly_fields = list_display

    @admin.display(description="life of")
    def what(self, run: RecorderRun) -> str:
        """What lived: a server with a sink of its own, or the store that recorder processes read."""
        return "a server" if run.store_born_ms is None else "the store in Redis"

    @admin.display(description="started (UTC)")
    def started(self, run: RecorderRun) -> str:
        """When it began."""
        return _moment(run.started_ms)

    @admin.display(description="recorded until (UTC)")
    def recorded_until(self, run: RecorderRun) -> str:
        """Before when all that the store took is recorded."""
        return _moment(run.recorded_until_ms)

    @admin.display(description="ended (UTC)")
    def ended(self, run: RecorderRun) -> str:
        """When it had written everything, or was found to have lost its data."""
        return _moment(run.ended_ms)

    @admin.display(description="its end")
    def how(self, run: RecorderRun) -> str:
        """Whether all of it is recorded; a server that was killed leaves no word of its end."""
        if run.ended_cleanly:
            return "clean: everything is recorded"
        if run.store_born_ms is None:
            return "not clean, unless it is still running"
        return "it goes on" if run.ended_ms is None else "its data was lost"


@admin.register(ReplayRequest)
class ReplayRequestAdmin(ReadOnlyAdmin):
    """Replays to open streams: who asked for them, and what became of them."""

    list_display = ("requested_at", "target", "state", "shown", "total", "speed", "requested_by", "error")
    list_filter = ("state",)
    ordering = ("-id",)
    sortable_by = ()
    fields = readonly_fields = (*list_display, "selection")

    @admin.display(description="to")
    def target(self, replay: ReplayRequest) -> str:
        """The stream or the session, in part."""
        return (
            f"stream {shortened(replay.stream_id)}"
            if replay.stream_id
            else f"session {shortened(replay.session_id)}"
        )


def _is_there(column: str, value: str) -> bool:
    # Ordered, so that PostgreSQL goes by the index: of a value that it takes for common it would read row by row.
    return (
        RecordedEnvelope.objects.filter(only(column, value)).order_by(column).values("pk").first() is not None
    )


def _readable(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")


def _moment(ms: int | None) -> str:
    return "" if ms is None else _readable(datetime.fromtimestamp(ms / 1000, UTC))


def _bound(text: str) -> str:
    """A position as it is; a time (only that has a T) as all times are shown here."""
    return f"{_readable(datetime.fromisoformat(text))} UTC" if "T" in text else text


def _events(label: str, **chosen: Any) -> str:
    """A link to the list of the events that a filter chooses."""
    if not label:
        return ""
    url = reverse("admin:recorder_recordedenvelope_changelist", query=chosen)
    return format_html('<a href="{}">{}</a>', url, label)


def _without_session(text: str, session_id: str) -> str:
    # A short id is no secret, and may well be a word of the text.
    return text if shortened(session_id) == session_id else text.replace(session_id, shortened(session_id))
