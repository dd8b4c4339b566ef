"""The comm app."""

from django.apps import AppConfig


class CommConfig(AppConfig):
    """What a bundle imports: envelopes, the communicator, turns."""

    name = "comm"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks, and the removal of files with their rows."""
        from . import checks  # noqa: F401
        from .bundles.llm import checks as llm_checks  # noqa: F401
        from .sandbox import checks as sandbox_checks  # noqa: F401
        from .turns import files  # noqa: F401
