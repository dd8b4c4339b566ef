"""Errors of comm: one root, children named for the fact."""


class CommError(Exception):
    """Root of the errors that comm raises; `code` is stable, the text is for people."""

    code = "comm_error"


class EnvelopeInvalid(CommError):
    """An envelope cannot be encoded; `field` names the part that was wrong."""

    code = "envelope_invalid"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


class PublishFailed(CommError):
    """The channel layer did not take an envelope."""

    code = "publish_failed"


class BundleUnknown(CommError):
    """No bundle is registered under this id."""

    code = "bundle_unknown"


class TurnLost(CommError):
    """This process no longer owns the turn that wants to emit: its lease ended."""

    code = "turn_lost"


class WallDown(CommError):
    """TENANT_WALL is on, but PostgreSQL keeps the tenants apart for this role no more than without it."""

    code = "wall_down"


class ConversationForbidden(CommError):
    """The conversation belongs to another user."""

    code = "conversation_forbidden"
