"""From two settings to a chat: the settings, their checks, and a whole server before a model server."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from comm.bundles import Bundle, TurnContext, get_bundle
from comm.bundles.llm.bundle import LlmBundle
from comm.bundles.llm.checks import check_llm_settings
from comm.bundles.llm.conf import llm_settings
from comm.bundles.registry import aclose_bundles, load_bundles
from tests.clients import ChatClient, text_of
from tests.comm.bundles.llm.modelserver import Exchange, ModelServer, refuses, says
from tests.servers import ROOT, ServerProcess

SHOW = """
import json, sys, django
django.setup()
from django.conf import settings
from comm.bundles.registry import bundle_ids, known_bundle_id
print(json.dumps([known_bundle_id(""), bundle_ids(), "openai" in sys.modules]))
"""


def run_script(script: str, env: dict[str, str], folder: Path) -> str:
    """Run Python in a process with just these settings; return what it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "DEFAULT_"))}
    whole = {**clean, "DJANGO_SETTINGS_MODULE": "project.settings", "DATA_DIR": str(folder), **env}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=whole, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("env", "shown"),
    [
        ({}, '["demo", ["demo"], false]'),
        ({"LLM_BASE_URL": "http://127.0.0.1:1/v1"}, '["demo", ["demo"], false]'),
        ({"LLM_BASE_URL": "http://127.0.0.1:1/v1", "LLM_MODEL": "m"}, '["llm", ["demo", "llm"], false]'),
        ({"LLM_BASE_URL": "http://127.0.0.1:1/v1", "LLM_MODEL": "m", "DEFAULT_BUNDLE": "demo"},
         '["demo", ["demo", "llm"], false]'),
    ],
)  # fmt: skip
def test_two_settings_make_it_the_default_bundle(env: dict[str, str], shown: str, tmp_path: Path) -> None:
    assert run_script(SHOW, env, tmp_path) == shown


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"BASE_URL": "http://x/v1"}, "LLM['MODEL'] is missing"),
        ({"MODEL": "m"}, "LLM['BASE_URL'] is missing"),
        ({"BASE_URL": "ftp://user:pw@x", "MODEL": "m"}, "must be a URL"),
        ({"BASE_URL": "http://[x/v1", "MODEL": "m"}, "must be a URL"),
        ({"BASE_URL": "127.0.0.1:11434/v1", "MODEL": "m"}, "must be a URL"),
        ({"TIMEOUT_SECONDS": 0}, "LLM['TIMEOUT_SECONDS'] is 0, which is too small"),
        ({"PRICE_INPUT_PER_MILLION": -1}, "too small"),
        ({"API_KEY": "ключ"}, "no key has"),
        ({"API_KEY": "sk-1\n"}, "no key has"),
        ({"BASE_URL": "http://x/v1", "MODEL": "m", "TOOLS": ["no.where"]}, "no.where"),
        ({"BASEURL": "http://x/v1"}, "LLM has no setting BASEURL"),
    ],
)
def test_wrong_setting_is_told_at_start(settings: Any, changes: dict[str, Any], problem: str) -> None:
    settings.LLM = changes

    [error] = check_llm_settings()

    assert problem in error.msg
    assert "pw" not in error.msg


def test_settings_that_fit_are_nothing_to_tell(settings: Any) -> None:
    settings.LLM = {"BASE_URL": "https://api.example.com/v1", "MODEL": "m", "API_KEY": "sk-1"}

    assert check_llm_settings() == []
    assert llm_settings().TOOL_ROUNDS == 8


class Closing(Bundle):
    """Notes that it was closed, and fails to."""

    closed = 0

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.delta("answer", "Yes.")

    async def aclose(self) -> None:
        Closing.closed += 1
        raise OSError("the cable is out")


async def test_used_bundles_are_closed_with_the_process_once(settings: Any) -> None:
    paths = {"one": f"{__name__}.Closing", "two": f"{__name__}.Closing"}
    settings.COMM = {**settings.COMM, "BUNDLES": paths, "DEFAULT_BUNDLE": "one"}
    first = get_bundle("one")
    get_bundle("two")
    before = Closing.closed

    await aclose_bundles()
    await aclose_bundles()

    assert Closing.closed == before + 2
    assert get_bundle("one") is not first


def test_bundle_that_cannot_be_imported_is_told_and_keeps_no_other_back(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.COMM = {**settings.COMM, "BUNDLES": {"broken": "no.such.Bundle", "one": f"{__name__}.Closing"}}

    load_bundles()

    assert "Bundle broken cannot be imported" in caplog.text
    assert isinstance(get_bundle("one"), Bundle)


def test_sdk_is_imported_before_the_first_turn(tmp_path: Path) -> None:
    env = {"LLM_BASE_URL": "http://127.0.0.1:1/v1", "LLM_MODEL": "m"}
    load = SHOW.replace("print", "from comm.bundles.registry import load_bundles; load_bundles(); print")

    assert run_script(load, env, tmp_path).endswith("true]")


@pytest.fixture
def backchannel(tmp_path: Path, server: ModelServer) -> Iterator[Callable[..., ServerProcess]]:
    """A whole server in a process of its own, before the model server of the test."""
    started: list[ServerProcess] = []

    def start(**env: str) -> ServerProcess:
        told = {"LLM_BASE_URL": server.base_url, "LLM_MODEL": "test-model", "LLM_SUGGESTIONS": "false", **env}
        process = ServerProcess(tmp_path, env={**told, "PYTHONWARNINGS": "error::ResourceWarning"})
        started.append(process)
        return process

    yield start
    for process in started:
        process.stop()


@pytest.mark.server
async def test_chat_streams_from_the_model_server_with_its_history(
    server: ModelServer, backchannel: Callable[..., ServerProcess]
) -> None:
    server.plan(says("It ", "is ", "blue."), says("Because of the air."))
    process = await asyncio.to_thread(backchannel(LLM_PRICE_OUTPUT_PER_MILLION="10").start)

    async with ChatClient(process.url) as client, client.stream() as stream:
        ack = await client.send("What colour is the sky?")
        first = await stream.until_idle()
        await client.send("Why?", conversation_id=ack["conversation_id"])
        second = await stream.until_idle()

    assert text_of(first) == "It is blue."
    assert text_of(second) == "Because of the air."
    assert [message["content"] for message in server.requests[1].messages[1:]] == [
        "What colour is the sky?", "It is blue.", "Why?",
    ]  # fmt: skip
    names = [event.data["type"] for event in first]
    assert names.index("accounting.usage") == names.index("chat.complete") - 1
    usage = next(event.data for event in first if event.data["type"] == "accounting.usage")
    assert usage["data"]["cost_total_usd"] == pytest.approx(0.00038)
    await asyncio.to_thread(process.stop)
    assert "Drained" in process.output()
    assert "ResourceWarning" not in process.output()
    assert "Traceback" not in process.output()


@pytest.mark.server
async def test_stop_of_the_user_reaches_the_model_server_and_a_failure_the_user(
    server: ModelServer, backchannel: Callable[..., ServerProcess]
) -> None:
    async def hesitant(exchange: Exchange) -> None:
        await exchange.delta(content="The answer")
        await exchange.until_gone(30)

    server.plan(hesitant, refuses(429, {"message": "Slow down"}, Retry_After="60"))
    process = await asyncio.to_thread(backchannel().start)

    async with ChatClient(process.url) as client, client.stream() as stream:
        ack = await client.send("Tell me everything")
        conversation = {"conversation_id": ack["conversation_id"]}
        events = await stream.until(lambda event: event.event == "chat_delta")
        await client.send("", continuation_kind="steer", **conversation)
        events += await stream.until_idle()
        await client.send("Once more", **conversation)
        refused = await stream.until_idle()

    await asyncio.wait_for(server.requests[0].gone.wait(), 5)
    complete = next(event.data["data"] for event in events if event.event == "chat_complete")
    assert complete["final_answer"] == "The answer"
    assert complete["stopped"] is True
    error = next(event.data["data"] for event in refused if event.event == "chat_error")
    assert error["error_type"] == "provider_rate_limited"
    assert error["retry_after"] == 60
    assert refused[-1].data["data"]["completion"] == "error"
    assert httpx.get(f"{process.url}/health").json()["turns"] == 0


@pytest.mark.server
async def test_server_that_stops_closes_its_bundles(backchannel: Callable[..., ServerProcess]) -> None:
    process = await asyncio.to_thread(backchannel(BUNDLES=f"closing={__name__}.Closing").start)

    async with ChatClient(process.url) as client, client.stream() as stream:
        await client.send("Hello", bundle_id="closing")
        await stream.until_idle()
    await asyncio.to_thread(process.stop)

    assert "Bundle Closing could not be closed" in process.output()


def test_path_in_the_settings_is_the_bundle(settings: Any) -> None:
    settings.COMM = {**settings.COMM, "BUNDLES": {"llm": "comm.bundles.llm.bundle.LlmBundle"}}

    assert isinstance(get_bundle("llm"), LlmBundle)
