"""Pruning old recordings."""

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from recorder import pruning
from recorder.models import RecordedEnvelope

pytestmark = pytest.mark.django_db


def record(days: int, tenant: str = "t", type: str = "chat.delta", count: int = 1) -> None:
    RecordedEnvelope.objects.bulk_create(
        RecordedEnvelope(
            session_id="s", epoch=days * 1000, seq=RecordedEnvelope.objects.count() + n, event="chat_delta", data="{}",
            timestamp=timezone.now() - timedelta(days=days, minutes=1), tenant=tenant, project="p", type=type,
            route="chat_delta",
        )
        for n in range(count)
    )  # fmt: skip


def prune(*arguments: str) -> str:
    out = StringIO()
    call_command("prune_recordings", *arguments, stdout=out)
    return out.getvalue()


def test_what_is_older_goes_and_the_rest_stays() -> None:
    record(10, count=3)
    record(1)
    assert prune("--older-than", "5d") == "3 recorded envelopes were deleted.\n"
    assert RecordedEnvelope.objects.count() == 1


def test_a_tenant_and_a_type_narrow_it_down() -> None:
    record(10, tenant="a")
    record(10, tenant="b")
    record(10, tenant="a", type="chat.step")
    prune("--older-than", "5d", "--tenant", "a", "--type", "chat.step")
    assert set(RecordedEnvelope.objects.values_list("tenant", "type")) == {
        ("a", "chat.delta"),
        ("b", "chat.delta"),
    }


def test_a_dry_run_only_counts() -> None:
    record(10, count=3)
    assert prune("--older-than", "5d", "--dry-run") == "3 recorded envelopes would be deleted.\n"
    assert RecordedEnvelope.objects.count() == 3


def test_it_goes_in_batches_with_a_pause_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "BATCH_ROWS", 2)
    record(10, count=5)
    pauses: list[float] = []
    what = pruning.Pruning(timezone.now())
    assert list(pruning.prune(what, sleep=pauses.append)) == [2, 2, 1]
    assert pauses == [pruning.PAUSE_SECONDS] * 3


@pytest.mark.parametrize("age", ["", "5", "d", "5.5d", "5 years"])
def test_an_age_that_is_none_is_refused_with_an_example(age: str) -> None:
    with pytest.raises(CommandError, match="90d"):
        prune("--older-than", age)
