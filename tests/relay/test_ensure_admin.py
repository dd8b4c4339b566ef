"""The first admin account."""

import io

import pytest
from django.contrib.auth import authenticate
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from pytest_django.fixtures import Settings

pytestmark = pytest.mark.django_db


def ensure_admin() -> str:
    out = io.StringIO()
    call_command("ensure_admin", stdout=out)
    return out.getvalue()


def test_the_first_admin_gets_a_password_that_is_printed_once(settings: Settings) -> None:
    settings.ADMIN_USERNAME, settings.ADMIN_PASSWORD = "root", ""
    printed = ensure_admin()
    password = printed.split("Its password is ")[1].split()[0]
    user = authenticate(username="root", password=password)
    assert isinstance(user, User)
    assert user.is_superuser
    assert user.is_staff
    assert ensure_admin() == ""


def test_a_password_from_the_environment_is_not_printed(settings: Settings) -> None:
    settings.ADMIN_USERNAME, settings.ADMIN_PASSWORD = "root", "correct-horse-battery"
    assert "correct-horse-battery" not in ensure_admin()
    assert authenticate(username="root", password="correct-horse-battery") is not None


def test_an_ordinary_user_of_that_name_is_not_made_an_admin(settings: Settings) -> None:
    settings.ADMIN_USERNAME = "ada"
    User.objects.create_user("ada")
    with pytest.raises(CommandError, match="set ADMIN_USERNAME"):
        ensure_admin()
    assert not User.objects.get(username="ada").is_superuser
