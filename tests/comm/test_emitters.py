"""AIBEmitters: payload objects and keywords say the same."""

from collections.abc import Callable
from typing import Any

import pytest

from comm import (
    AIBEmitters,
    ChatCommunicator,
    CompletePayload,
    DeltaPayload,
    ErrorPayload,
    EventPayload,
    StartPayload,
    StepPayload,
)
from tests.comm.listening import Listener

Maker = Callable[..., ChatCommunicator]


def content(envelope: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in envelope.items() if name not in ("timestamp", "ts")}


@pytest.mark.parametrize(
    ("form", "payload", "keywords"),
    [
        (
            "start",
            StartPayload(message="Hi", queue_stats={"n": 1}),
            {"message": "Hi", "queue_stats": {"n": 1}},
        ),
        (
            "step",
            StepPayload(
                step="read", status="completed", title="Read", agent="a", markdown="*m*", data={"n": 1}
            ),
            {
                "step": "read",
                "status": "completed",
                "title": "Read",
                "agent": "a",
                "markdown": "*m*",
                "data": {"n": 1},
            },
        ),
        (
            "delta",
            DeltaPayload(
                text="x",
                index=3,
                marker="canvas",
                completed=True,
                agent="a",
                format="json",
                extra={"language": "de"},
            ),
            {
                "text": "x",
                "index": 3,
                "marker": "canvas",
                "completed": True,
                "agent": "a",
                "format": "json",
                "language": "de",
            },
        ),
        ("complete", CompletePayload(data={"final_answer": "f"}), {"data": {"final_answer": "f"}}),
        (
            "error",
            ErrorPayload(message="no", data={"reason": "r"}),
            {"message": "no", "data": {"reason": "r"}},
        ),
        (
            "event",
            EventPayload(
                type="my.card", agent="a", title="T", step="s", status="started", route="chat_service"
            ),
            {
                "type": "my.card",
                "agent": "a",
                "title": "T",
                "step": "s",
                "status": "started",
                "route": "chat_service",
            },
        ),
    ],
)
async def test_a_payload_object_and_keywords_put_the_same_on_the_wire(
    make_comm: Maker, listener: Listener, form: str, payload: Any, keywords: dict[str, Any]
) -> None:
    await getattr(AIBEmitters(make_comm()), form)(payload)
    await getattr(AIBEmitters(make_comm()), form)(**keywords)
    by_payload, by_keywords = await listener.next(), await listener.next()
    assert content(by_payload.envelope) == content(by_keywords.envelope)
    assert by_payload.route == by_keywords.route


async def test_every_field_of_a_step_payload_is_forwarded(make_comm: Maker, listener: Listener) -> None:
    emit = AIBEmitters(make_comm(target_sid="mine"))
    await emit.step(
        StepPayload(step="s", type="my.card", timing={"elapsed_ms": 12}, broadcast=True, data={"n": 1})
    )
    heard = await listener.next()
    assert heard.target_sid is None
    assert heard.envelope["type"] == "my.card"
    assert heard.envelope["data"] == {"n": 1, "timing": {"elapsed_ms": 12}}


async def test_every_field_of_an_event_payload_is_forwarded(make_comm: Maker, listener: Listener) -> None:
    emit = AIBEmitters(make_comm())
    await emit.event(
        EventPayload(type="my.card", target_sid="sid", extra={"a": 1}, metadata={"agent_id": "x"})
    )
    heard = await listener.next()
    assert heard.target_sid == "sid"
    assert (heard.envelope["extra"], heard.envelope["metadata"]) == ({"a": 1}, {"agent_id": "x"})


async def test_the_documented_deltas_of_each_marker(make_comm: Maker, listener: Listener) -> None:
    emit = AIBEmitters(make_comm())
    await emit.delta(text="Working it out…", index=0, marker="thinking", agent="gate")
    await emit.delta(text='{"status":"running"}', index=0, marker="subsystem", agent="tool.exec")
    await emit.followups(["More?"])
    heard = [await listener.next() for _ in range(3)]
    assert [item.envelope["event"]["agent"] for item in heard[:2]] == ["gate", "tool.exec"]
    assert heard[2].envelope["data"] == {"items": ["More?"]}


async def test_the_short_forms_work_here_too(make_comm: Maker, listener: Listener) -> None:
    emit = AIBEmitters(make_comm())
    await emit.start()
    await emit.step("Searching…")
    await emit.delta("answer", "Yes.")
    await emit.complete()
    assert (await listener.until("chat.complete"))[-1].envelope["data"]["final_answer"] == "Yes."


async def test_a_step_without_a_status_is_completed_in_either_form(make_comm: Maker) -> None:
    comm = make_comm()
    await AIBEmitters(comm).step(StepPayload(step="one"))
    await AIBEmitters(comm).step(step="two")
    assert [(step["step"], step["status"]) for step in comm.steps] == [
        ("one", "completed"),
        ("two", "completed"),
    ]


async def test_keywords_win_over_the_payload(make_comm: Maker, listener: Listener) -> None:
    await AIBEmitters(make_comm()).delta(DeltaPayload(text="x"), marker="thinking")
    assert (await listener.next()).envelope["delta"]["marker"] == "thinking"


async def test_a_payload_of_another_form_is_refused(make_comm: Maker) -> None:
    with pytest.raises(TypeError, match="one DeltaPayload is wanted, not StepPayload"):
        await AIBEmitters(make_comm()).delta(StepPayload(step="s"))
