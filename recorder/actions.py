"""What an auditor does with selected recordings: export them, or show them to an open stream."""

import time
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse

from .models import RecordedEnvelope, ReplayRequest
from .selection import Selection

CHUNK_ROWS = 500
REPLAYED_ROWS = 10_000
"""Rows of one request: their ids travel in it. A whole turn or conversation goes by the command."""


class ReplayForm(forms.Form):
    """Where a replay is shown, and how fast."""

    stream_id = forms.CharField(
        max_length=200, required=False, label="To the stream", help_text="the stream_id of an open stream"
    )
    session_id = forms.CharField(
        max_length=100,
        required=False,
        label="or to the session",
        help_text="every open stream of this session",
    )
    speed = forms.FloatField(
        min_value=0, max_value=1000, initial=1, help_text="1 as it was, 10 ten times as fast, 0 at once"
    )

    def clean(self) -> dict[str, Any]:
        """Ask for exactly one target."""
        cleaned = super().clean() or {}
        if bool(cleaned.get("stream_id")) == bool(cleaned.get("session_id")):
            raise forms.ValidationError("Name a stream or a session: one of the two.")
        return cleaned


@admin.action(description="Export as JSONL", permissions=["view"])
def export_jsonl(
    modeladmin: Any, request: HttpRequest, queryset: QuerySet[RecordedEnvelope]
) -> StreamingHttpResponse:
    """Download the selected relay messages, one per line, in the order in which clients saw them."""
    rows = queryset.order_by("epoch", "seq", "id")
    lines = (row.relay_line() + "\n" for row in rows.iterator(chunk_size=CHUNK_ROWS))
    response = StreamingHttpResponse(lines, content_type="application/x-ndjson")
    response["Content-Disposition"] = (
        f'attachment; filename="recordings-{time.strftime("%Y%m%d-%H%M%S")}.jsonl"'
    )
    return response


@admin.action(description="Replay to an open stream…", permissions=["view"])
def replay_to_stream(
    modeladmin: Any, request: HttpRequest, queryset: QuerySet[RecordedEnvelope]
) -> HttpResponse | None:
    """Ask where to, then hand the selected events to the serving process."""
    chosen = list(queryset.order_by("epoch", "seq", "id").values_list("pk", flat=True)[: REPLAYED_ROWS + 1])
    if len(chosen) > REPLAYED_ROWS:
        modeladmin.message_user(
            request, f"At most {REPLAYED_ROWS} events; replay a whole turn with the command.", messages.ERROR
        )
        return None
    form = ReplayForm(request.POST if "confirmed" in request.POST else None)
    if form.is_valid():
        replay = ReplayRequest.objects.create(
            stream_id=form.cleaned_data["stream_id"],
            session_id=form.cleaned_data["session_id"],
            selection=Selection(row_ids=chosen).as_json(),
            speed=form.cleaned_data["speed"],
            total=len(chosen),
            requested_by=request.user.get_username(),
        )
        modeladmin.message_user(
            request, f"Replay {replay.pk} of {len(chosen)} events was handed to the server."
        )
        return None
    context = {
        **modeladmin.admin_site.each_context(request),
        "title": "Replay to an open stream",
        "opts": modeladmin.model._meta,
        "form": form,
        "selected": request.POST.getlist(admin.helpers.ACTION_CHECKBOX_NAME),
        "select_across": request.POST.get("select_across", "0"),
        "count": len(chosen),
        "query": request.GET.urlencode(),
    }
    return TemplateResponse(request, "admin/recorder/recordedenvelope/replay.html", context)
