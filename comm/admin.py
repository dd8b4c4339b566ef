"""Conversations, turns and messages in the admin, to look at."""

import json
from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from .models import Attachment, Conversation, Message, Turn


class ReadOnly:
    """What happened is not edited; it can be looked at by whoever may view it."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody adds to the past."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody changes it."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody removes parts of it here."""
        return False


def pretty(value: object) -> SafeString:
    """Return a JSON value, indented and escaped."""
    return format_html(
        "<pre style='white-space:pre-wrap;margin:0'>{}</pre>", json.dumps(value, indent=2, ensure_ascii=False)
    )


def link(row: Model | None, text: str) -> str:
    """Return a link to a row's admin page."""
    if row is None:
        return ""
    meta = row._meta
    return format_html(
        '<a href="{}">{}</a>',
        reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[row.pk]),
        text,
    )


class TurnsOfConversation(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    """The turns of a conversation, in its page."""

    model = Turn
    fields = ("turn_id", "kind", "status", "accepted_at", "finished_at")
    readonly_fields = fields
    show_change_link = True
    extra = 0


class AttachmentsOfMessage(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    """The files of a message, in its page."""

    model = Attachment
    fields = ("filename", "mime", "size")
    readonly_fields = fields
    extra = 0


@admin.register(Conversation)
class ConversationAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Conversations, the latest first."""

    list_display = ("__str__", "state", "bundle_id", "tenant", "project", "last_activity_at")
    list_filter = ("state", "bundle_id", "last_activity_at")
    search_fields = ("=conversation_id", "=owner", "title")
    date_hierarchy = "last_activity_at"
    ordering = ("-last_activity_at",)
    show_full_result_count = False
    inlines = (TurnsOfConversation,)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A conversation can be deleted as a whole, with its turns, messages and files."""
        return admin.ModelAdmin.has_delete_permission(self, request, obj)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """List what goes along: its parts are not deleted by themselves, but they are with the whole."""
        deleted, counts, _, protected = super().get_deleted_objects(objs, request)
        return deleted, counts, set(), protected


@admin.register(Turn)
class TurnAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Turns, the latest first, each with its recorded events."""

    list_display = ("turn_id", "status", "kind", "bundle_id", "user_type", "accepted_at", "finished_at")
    list_filter = ("status", "kind", "bundle_id", "accepted_at")
    search_fields = ("=turn_id", "=session_id", "=user_id")
    date_hierarchy = "accepted_at"
    ordering = ("-pk",)
    show_full_result_count = False
    fields = (
        "turn_id", "in_conversation", "status", "kind", "number", "bundle_id", "session", "user_id", "user_type",
        "origin_stream_id", "absorbed_by", "accepted_at", "started_at", "finished_at", "stop_requested_at",
        "first_position", "fence", "lease_until", "what_was_asked", "what_came_of_it", "what_went_wrong",
    )  # fmt: skip
    readonly_fields = fields

    @admin.display(description="conversation")
    def in_conversation(self, turn: Turn) -> str:
        """Link to the conversation."""
        return link(turn.conversation, str(turn.conversation))

    @admin.display(description="session")
    def session(self, turn: Turn) -> str:
        """The session's id, in part: who holds the id of an anonymous session holds the session."""
        return turn.session_id[:8] + "…"

    @admin.display(description="request")
    def what_was_asked(self, turn: Turn) -> str:
        """The accepted request."""
        return pretty(turn.request)

    @admin.display(description="outcome")
    def what_came_of_it(self, turn: Turn) -> str:
        """Folded markers, steps, followups and usage."""
        return pretty(turn.outcome)

    @admin.display(description="error")
    def what_went_wrong(self, turn: Turn) -> str:
        """The error, where there was one."""
        return pretty(turn.error) if turn.error else ""


@admin.register(Message)
class MessageAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Messages, the latest first."""

    list_display = ("__str__", "role", "author", "conversation", "created_at")
    list_filter = ("role", "created_at")
    list_select_related = ("conversation",)
    search_fields = ("=turn__turn_id", "=conversation__conversation_id")
    date_hierarchy = "created_at"
    ordering = ("-pk",)
    show_full_result_count = False
    inlines = (AttachmentsOfMessage,)
