"""The page over reloads, restarts and deaths of its server: no text is lost, and what is lost is told."""

import pytest
from playwright.sync_api import expect

from tests.browser.chatpage import SALES, is_whole, numbers_in, walking
from tests.browser.conftest import OpenPage
from tests.journeys.conftest import StartServer
from tests.servers import ServerProcess

pytestmark = [pytest.mark.browser, pytest.mark.server]


def test_a_reload_in_mid_answer_loses_nothing(own_server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(own_server.url, config=walking(600)).until_live()
    chat.attach("sales.csv", SALES)
    chat.say("What is in this file?")
    for delta in (300, 420):
        chat.until_walking(delta)
        chat.page.reload()
    chat.until("completed")
    assert is_whole(chat.answer_text(), 600)
    expect(chat.last.locator(".said")).to_contain_text("sales.csv")
    expect(chat.last.locator(".steps li[data-state=done]")).not_to_have_count(0)
    streamed = chat.answer_text()
    chat.page.reload()
    chat.until("completed")
    assert chat.answer_text() == streamed


def test_a_draft_survives_a_reload(own_server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(own_server.url).until_live()
    chat.message.fill("not sent yet")
    chat.page.reload()
    expect(chat.message).to_have_value("not sent yet")


def test_a_drain_in_mid_answer_loses_nothing(own_server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(own_server.url, config=walking(400)).until_live()
    chat.say("Hello there")
    chat.until_walking()
    own_server.terminate()
    expect(chat.connection).to_contain_text("The server is restarting")
    own_server.wait()
    seen = len(numbers_in(chat.answer_text()))
    assert 0 < seen < 300
    own_server.start()
    chat.until_live()
    chat.until("completed")
    assert is_whole(chat.answer_text(), 400)
    expect(chat.page.locator(".notice")).to_have_count(0)


def test_a_draining_503_is_waited_out(own_server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(own_server.url, config=walking(50)).until_live()
    answers = iter([503, 503])
    body = {"status": "draining", "detail": "The server is restarting; try again in a moment."}

    def draining(route, request) -> None:  # type: ignore[no-untyped-def]
        status = next(answers, None)
        if status is None:
            return route.fallback()
        return route.fulfill(status=status, json=body, headers={"Retry-After": "1"})

    chat.page.route("**/sse/chat?*", draining)
    chat.say("Hello there")
    expect(chat.last).to_contain_text("The server is restarting")
    chat.until("completed")
    expect(chat.turns).to_have_count(1)
    assert is_whole(chat.answer_text(), 50)


def test_a_message_to_a_server_that_is_away_goes_out_once(
    own_server: ServerProcess, open_page: OpenPage
) -> None:
    chat = open_page(own_server.url, config=walking(50)).until_live()
    own_server.stop()
    chat.say("Hello there")
    expect(chat.last).to_contain_text("cannot be reached")
    own_server.start()
    chat.until_live()
    chat.until("completed")
    chat.page.reload()
    chat.until("completed")
    expect(chat.turns).to_have_count(1)


def test_an_interrupted_turn_is_tried_again_only_by_hand(
    start_server: StartServer, open_page: OpenPage
) -> None:
    server = start_server(env={"DRAIN_GRACE_SECONDS": "0.3"})
    chat = open_page(server.url, config=walking(1500)).until_live()
    chat.say("Hello there")
    chat.until_walking()
    server.stop()
    server.start()
    chat.until("interrupted")
    assert len(numbers_in(chat.answer_text())) >= 10
    expect(chat.last.locator(".outcome")).to_contain_text("interrupted")
    chat.page.reload()
    chat.until("interrupted")
    expect(chat.turns).to_have_count(1)
    chat.last.get_by_role("button", name="Try again").click()
    expect(chat.turns).to_have_count(2)
    expect(chat.last.locator(".said")).to_contain_text("Hello there")
    chat.page.get_by_role("button", name="Stop").click()
    chat.until("stopped")


def test_what_a_killed_server_lost_is_told(own_server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(own_server.url, config=walking(4000)).until_live()
    chat.say("Hello there")
    chat.until_walking()
    own_server.kill()
    expect(chat.connection).to_have_attribute("data-phase", "waiting")
    shown = len(numbers_in(chat.answer_text()))
    own_server.start()
    chat.until_live()
    expect(chat.page.locator(".notice")).to_contain_text("could not be recovered")
    chat.until("interrupted")
    assert len(numbers_in(chat.answer_text())) >= shown
