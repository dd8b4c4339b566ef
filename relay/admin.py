"""Sessions in the admin, to look at."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from .models import Session


@admin.register(Session)
class SessionAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Read-only: who holds the id of an anonymous session holds the session, so it is shown in part."""

    list_display = ("__str__", "user_type", "user_id", "created_at", "last_seen_at")
    list_filter = ("user_type", "created_at")
    search_fields = ("=session_id", "username", "user_id")
    date_hierarchy = "created_at"
    show_full_result_count = False
    fields = (
        "username",
        "user_id",
        "user_type",
        "roles",
        "permissions",
        "fingerprint",
        "created_at",
        "last_seen_at",
    )
    readonly_fields = fields

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Sessions are made by requests."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Sessions say what credentials said."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Conversations, logs and recordings hang on a session."""
        return False
