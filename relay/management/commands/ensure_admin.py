"""`manage.py ensure_admin`: the first admin account, made when there is none."""

import secrets
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.db import IntegrityError, transaction

PASSWORD_BYTES = 12


class Command(BaseCommand):
    """Make the first superuser; its password comes from ADMIN_PASSWORD, or is made and printed once."""

    help = "Make an admin account when there is none; print its password when it was made here."

    def handle(self, *args: Any, **options: Any) -> None:
        """Do nothing where a superuser exists already."""
        users = get_user_model().objects
        if users.filter(is_superuser=True).exists():
            return
        name, given = settings.ADMIN_USERNAME, settings.ADMIN_PASSWORD
        password = given or secrets.token_urlsafe(PASSWORD_BYTES)
        try:
            with transaction.atomic():
                users.create_superuser(name, password=password)
        except IntegrityError:
            raise CommandError(f"There is a user {name!r} who is no admin; set ADMIN_USERNAME.") from None
        self.stdout.write(f"Made the admin account {name!r}.")
        if not given:
            self.stdout.write(f"Its password is {password} - it is shown this once.")
