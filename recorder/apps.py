"""The recorder app."""

from django.apps import AppConfig


class RecorderConfig(AppConfig):
    """What was delivered, kept: rows, audit and replay."""

    name = "recorder"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks."""
        from . import checks  # noqa: F401
