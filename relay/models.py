"""Sessions: the broadcast rooms that outlive every connection and process."""

from django.db import models


class Session(models.Model):
    """One user's room, shared by all of the user's tabs and devices; or one anonymous visitor's.

    A registered user has one session; an anonymous one belongs to whoever holds its unguessable id.
    An anonymous session is never turned into a user's: whoever planted its id would read along.
    """

    class UserType(models.TextChoices):
        ANONYMOUS = "anonymous"
        REGISTERED = "registered"
        PAID = "paid"
        PRIVILEGED = "privileged"

    session_id = models.CharField(max_length=64, primary_key=True)
    user_type = models.CharField(max_length=20, choices=UserType.choices, default=UserType.ANONYMOUS)
    user_id = models.CharField(max_length=150, null=True, blank=True, unique=True)
    username = models.CharField(max_length=150, blank=True)
    roles = models.JSONField(default=list, blank=True)
    permissions = models.JSONField(default=list, blank=True)
    fingerprint = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    last_seen_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.username or f"anonymous {self.session_id[:8]}"

    @property
    def is_anonymous(self) -> bool:
        """Whether nobody has logged in to it."""
        return self.user_id is None

    @property
    def owner(self) -> str:
        """Who owns the conversations of this session: the user, or the session itself."""
        return self.user_id if self.user_id is not None else self.session_id


class Ticket(models.Model):
    """A ticket that was given out and not used yet, by its hash."""

    digest = models.CharField(max_length=64, primary_key=True)
    session = models.ForeignKey(Session, on_delete=models.CASCADE, related_name="+")
    expires_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"ticket of {self.session}"
