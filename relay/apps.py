"""The relay app."""

from django.apps import AppConfig


class RelayConfig(AppConfig):
    """How envelopes reach clients, and how messages come in."""

    name = "relay"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks."""
        from . import checks  # noqa: F401
