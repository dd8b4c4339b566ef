"""Downloading attachments, and their end with the rows that they belong to."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import Storage, storages
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.db import transaction

from comm.models import Attachment, Conversation, Message, Turn
from tests.attachments import png
from tests.relay.ingress.visitors import Visitor

MakeVisitor = Callable[..., Visitor]
HTML = b"<script>alert(1)</script>"


@pytest.fixture
def storage(visitor: Visitor) -> Storage:
    """Where the visitor's files are kept."""
    return storages["attachments"]


def send(visitor: Visitor, *files: SimpleUploadedFile) -> str:
    response = visitor.submit(*files, message={"message": {"text": "Look"}})
    assert response.status_code == 200, response.content
    return str(response.json()["conversation_id"])


def fetched(visitor: Visitor, conversation_id: str) -> list[dict[str, Any]]:
    document = visitor.ask(f"/api/cb/conversations/acme/web/{conversation_id}/fetch").json()
    return [file for message in document["messages"] for file in message["attachments"]]


def kept(storage: Storage) -> list[Attachment]:
    """The attachments whose file is there."""
    return [row for row in Attachment.objects.all() if storage.exists(row.path)]


# --- downloading --------------------------------------------------------------------------------------------


def test_an_owner_gets_the_file_as_it_was_sent(visitor: Visitor) -> None:
    picture = png(2000)
    (file,) = fetched(visitor, send(visitor, SimpleUploadedFile("Foto \u00fc.png", picture, "image/png")))
    response = visitor.get(file["url"])
    assert response.status_code == 200
    assert b"".join(response.streaming_content) == picture
    assert response["Content-Type"] == "image/png"
    assert response["Content-Disposition"] == "attachment; filename*=utf-8''Foto%20%C3%BC.png"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in response["Content-Security-Policy"]
    assert {"private", "no-store"} <= set(response["Cache-Control"].split(", "))
    response.close()


def test_what_would_run_in_a_browser_is_text_and_a_download(visitor: Visitor) -> None:
    (file,) = fetched(visitor, send(visitor, SimpleUploadedFile("page.html", HTML, "text/html")))
    response = visitor.get(file["url"])
    assert response["Content-Type"] == "text/plain"
    assert response["Content-Disposition"].startswith("attachment")
    response.close()


def test_everybody_else_gets_a_404(make_visitor: MakeVisitor) -> None:
    owner, stranger = make_visitor(), make_visitor()
    conversation_id = send(owner, SimpleUploadedFile("a.txt", b"private"))
    (file,) = fetched(owner, conversation_id)
    assert stranger.get(file["url"]).status_code == 404
    theirs = send(stranger, SimpleUploadedFile("b.txt", b"other"))
    # Neither does the id of a file open it below a conversation of one's own.
    assert stranger.get(file["url"].replace(conversation_id, theirs)).status_code == 404
    assert owner.get(file["url"].replace("acme", "other")).status_code == 404
    stranger.client.cookies.clear()
    stranger.headers.clear()
    assert stranger.get(file["url"]).status_code == 401


@pytest.mark.parametrize(
    "id", ["not-a-uuid", "00000000-0000-0000-0000-000000000000", "..%2f..%2fetc%2fpasswd"]
)
def test_an_id_that_names_nothing_is_404(visitor: Visitor, id: str) -> None:
    conversation_id = send(visitor, SimpleUploadedFile("a.txt", b"x"))
    response = visitor.get(f"/api/cb/conversations/acme/web/{conversation_id}/attachments/{id}")
    assert response.status_code == 404
    assert response.json()["detail"]["error_type"] == "not_found"


def test_a_file_that_is_gone_from_the_storage_is_said_to_be(visitor: Visitor, storage: Storage) -> None:
    (file,) = fetched(visitor, send(visitor, SimpleUploadedFile("a.txt", b"x")))
    storage.delete(Attachment.objects.get().path)
    response = visitor.get(file["url"])
    assert response.status_code == 404
    assert "not there any more" in response.json()["detail"]["error"]


# --- the end of files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Conversation, Turn, Message, Attachment])
def test_a_file_goes_with_its_row_however_that_goes(visitor: Visitor, storage: Storage, model: Any) -> None:
    send(visitor, SimpleUploadedFile("a.txt", b"a"), SimpleUploadedFile("b.txt", b"b"))
    paths = [row.path for row in kept(storage)]
    assert len(paths) == 2
    model.objects.all().delete()
    assert not Attachment.objects.exists()
    assert [path for path in paths if storage.exists(path)] == []


def test_a_deletion_that_is_rolled_back_keeps_the_file(visitor: Visitor, storage: Storage) -> None:
    send(visitor, SimpleUploadedFile("a.txt", b"a"))
    with transaction.atomic():
        Conversation.objects.all().delete()
        transaction.set_rollback(True)
    assert len(kept(storage)) == 1


def test_what_no_row_names_is_swept_up(
    visitor: Visitor, storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    send(visitor, SimpleUploadedFile("a.txt", b"a"))
    orphan = storage.save("17/orphan", ContentFile(b"left by a crash"))
    call_command("prune_attachments")
    assert storage.exists(orphan), "a young file may be on its way"
    call_command("prune_attachments", "--older-than-hours=0", "--dry-run")
    assert storage.exists(orphan)
    call_command("prune_attachments", "--older-than-hours=0")
    assert not storage.exists(orphan)
    assert len(kept(storage)) == 1
    assert capsys.readouterr().out.splitlines() == [
        "0 files removed.", "1 files would be removed.", "1 files removed."
    ]  # fmt: skip
