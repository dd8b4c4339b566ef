"""The page driven in Chromium: from a message to its answer."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.chatpage import SALES, ChatPage, is_whole, numbers_in, walking
from tests.browser.conftest import OpenPage
from tests.journeys.conftest import StartServer
from tests.servers import ADMIN, ServerProcess
from tests.waiting import eventually

pytestmark = [pytest.mark.browser, pytest.mark.server]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all of them; each page is another user's."""
    server = ServerProcess(tmp_path_factory.mktemp("server")).start()
    yield server
    server.stop()


# --- from message to answer ---------------------------------------------------------------------------


def test_a_message_with_a_csv_file_is_answered(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, config='{"pace_ms": 2}').until_live()
    chat.attach("sales.csv", SALES)
    chat.say("What is the average revenue per region?")
    chat.until("completed")
    expect(chat.last.locator(".said")).to_contain_text("sales.csv")
    expect(chat.answer).to_contain_text("104.5")
    expect(chat.answer.locator("table").first).to_contain_text("North")
    expect(chat.answer).to_have_attribute("aria-busy", "false")
    expect(chat.last.locator(".steps summary")).to_contain_text("steps")
    expect(chat.last.locator(".thinking")).to_be_visible()
    expect(chat.last.locator(".timeline")).to_be_visible()
    expect(chat.last.locator(".widget")).to_contain_text("Data profile")
    expect(chat.last.locator(".usage")).to_contain_text("Token usage")
    expect(chat.last.locator(".followups button").first).to_be_visible()
    expect(chat.page.locator("#conversations a")).to_have_text(["What is the average revenue per region?"])


def test_the_canvas_draws_the_chart_as_an_image(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, config='{"pace_ms": 0}').until_live()
    chat.attach("sales.csv", SALES)
    chat.say("What is the average revenue per region?")
    chat.until("completed")
    chat.last.locator(".artifact").first.click()
    drawing = chat.page.locator("#canvas img.drawing")
    expect(drawing).to_be_visible()
    assert drawing.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    chat.page.keyboard.press("Escape")
    expect(chat.page.locator("#canvas")).to_be_hidden()


def test_a_followup_button_asks_its_question(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, config='{"pace_ms": 0}').until_live()
    chat.attach("sales.csv", SALES)
    chat.say("What is in this file?")
    chat.until("completed")
    button = chat.last.locator(".followups button").first
    question = button.inner_text()
    button.click()
    expect(chat.turns).to_have_count(2)
    expect(chat.last.locator(".said")).to_contain_text(question)
    chat.until("completed")
    expect(chat.turns.first.locator(".followups button")).to_have_count(0)


def test_enter_sends_and_shift_enter_starts_a_line(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, config='{"pace_ms": 0}').until_live()
    expect(chat.page.get_by_role("button", name="Send")).to_be_disabled()
    chat.message.type("one")
    chat.message.press("Shift+Enter")
    chat.message.type("two")
    expect(chat.message).to_have_value("one\ntwo")
    chat.message.press("Enter")
    expect(chat.message).to_have_value("")
    expect(chat.last.locator(".said-text")).to_have_text("one\ntwo")
    chat.until("completed")


def test_files_are_dropped_pasted_and_removed(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, config='{"pace_ms": 0}').until_live()
    give = """([selector, type, name]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File(["a,b\\n1,2\\n"], name, { type: "text/csv" }));
        const options = { clipboardData: transfer, dataTransfer: transfer, bubbles: true, cancelable: true };
        const Kind = type === "paste" ? ClipboardEvent : DragEvent;
        document.querySelector(selector).dispatchEvent(new Kind(type, options));
    }"""
    chat.page.evaluate(give, ["#scroller", "drop", "dropped.csv"])
    chat.page.evaluate(give, ["#text", "paste", "pasted.csv"])
    chips = chat.page.locator("#files li")
    expect(chips).to_have_count(2)
    expect(chips.first).to_contain_text("dropped.csv")
    expect(chips.first).to_contain_text("8 B")
    chat.page.get_by_role("button", name="Remove dropped.csv").click()
    expect(chips).to_have_count(1)
    chat.say("What is this?")
    expect(chat.last.locator(".files")).to_contain_text("pasted.csv")
    chat.until("completed")


def test_what_users_write_is_never_markup(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, config='{"pace_ms": 0}').until_live()
    attack = "<img src=x onerror=alert(1)> <script>alert(2)</script> [x](javascript:alert(3)) longest"
    chat.attach("attack.md", f"# {attack}\n\n{attack}\n", mime="text/markdown")
    chat.say(attack)
    chat.until("completed")
    expect(chat.last.locator(".said-text")).to_have_text(attack)
    assert chat.page.locator("#transcript script, #transcript img").count() == 0
    assert chat.page.locator('a[href^="javascript"]').count() == 0


def test_other_tabs_of_the_user_follow_the_answer(server: ServerProcess, open_page: OpenPage) -> None:
    first = open_page(server.url, config=walking(200)).until_live()
    second = open_page(server.url, beside=first.page).until_live()
    first.say("Hello there")
    first.until_walking()
    second.page.locator("#conversations a").click()
    second.until("completed")
    assert is_whole(second.answer_text(), 200)
    first.until("completed")
    assert second.answer_text() == first.answer_text()


def test_a_conversation_opened_in_mid_answer_is_read_from_its_beginning(
    server: ServerProcess, open_page: OpenPage
) -> None:
    first = open_page(server.url, config=walking(300)).until_live()
    first.say("Hello there")
    first.until_walking()
    # This tab's stream begins in the middle of the answer.
    second = open_page(server.url, beside=first.page).until_live()
    second.page.locator("#conversations a").click()
    second.until("completed")
    first.until("completed")
    assert is_whole(second.answer_text(), 300)
    assert second.answer_text() == first.answer_text()


# --- stop, followup, steer ------------------------------------------------------------------------------


def test_stop_ends_the_answer_and_keeps_its_text(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, config=walking(5000)).until_live()
    chat.say("Hello there")
    chat.until_walking()
    chat.page.get_by_role("button", name="Stop").click()
    chat.until("stopped")
    kept = chat.answer_text()
    assert len(numbers_in(kept)) >= 10
    expect(chat.page.get_by_role("button", name="Stop")).to_be_hidden()
    chat.page.reload()
    chat.until("stopped")
    assert chat.answer_text() == kept


def test_a_message_to_a_busy_conversation_is_a_followup(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, config=walking(150)).until_live()
    chat.say("Hello there")
    chat.until_walking()
    chat.message.fill("What is the longest word?")
    chat.page.get_by_role("button", name="Follow up").click()
    expect(chat.last.locator(".badge")).to_have_text("Followup, waiting")
    chat.until("absorbed")
    expect(chat.last.locator(".badge")).to_have_text("Read by the answer above")
    expect(chat.turns.first).to_have_attribute("data-status", "completed", timeout=60_000)


def test_an_interruption_ends_the_answer_and_is_answered(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, config=walking(400)).until_live()
    chat.say("Hello there")
    chat.until_walking()
    chat.message.fill("Something else instead")
    chat.page.get_by_role("button", name="Interrupt").click()
    expect(chat.turns.first).to_have_attribute("data-status", "stopped", timeout=30_000)
    expect(chat.last.locator(".said")).to_contain_text("Something else instead")
    chat.until("completed")


# --- errors, in the server's words ----------------------------------------------------------------------


def test_an_error_of_the_bundle_is_shown_in_its_words(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, config='{"pace_ms": "fast"}').until_live()
    chat.say("Hello there")
    chat.until("error")
    expect(chat.last.locator(".outcome")).to_contain_text("pace_ms")
    expect(chat.last.get_by_role("button", name="Try again")).to_be_visible()
    chat.page.reload()
    chat.until("error")
    expect(chat.last.locator(".outcome")).to_contain_text("pace_ms")


def test_a_rate_limit_is_told_as_the_server_words_it(start_server: StartServer, open_page: OpenPage) -> None:
    limited = start_server(env={"MESSAGE_RATE": "1/minute"})
    chat = open_page(limited.url, config='{"pace_ms": 0}').until_live()
    chat.say("one")
    chat.until("completed")
    with chat.page.expect_response("**/sse/chat?*") as refused:
        chat.say("two")
    sentence = refused.value.json()["detail"]["rate_limit"]["user_message"]
    expect(chat.last.locator(".problem")).to_have_text(sentence)
    chat.last.get_by_role("button", name="Back to the draft").click()
    expect(chat.message).to_have_value("two")
    expect(chat.turns).to_have_count(1)


def test_a_refused_attachment_leaves_the_message_to_be_mended(
    server: ServerProcess, open_page: OpenPage
) -> None:
    chat = open_page(server.url, config='{"pace_ms": 0}').until_live()
    chat.attach("large.png", "\x00" * 64, mime="image/png")
    chat.say("What is this?")
    problem = chat.last.locator(".problem")
    expect(problem).to_contain_text("large.png")
    chat.last.get_by_role("button", name="Back to the draft").click()
    expect(chat.message).to_have_value("What is this?")
    expect(chat.page.locator("#files li")).to_contain_text("large.png")


def test_a_conversation_that_does_not_exist_is_a_new_one(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(f"{server.url}").until_live()
    chat.page.goto(f"{server.url}/#nothing-here")
    expect(chat.page.locator("#empty")).to_be_visible()
    expect(chat.page.locator(".notice")).to_have_count(0)


# --- people and means -----------------------------------------------------------------------------------


def log_in(chat: ChatPage) -> None:
    """Follow the link to the admin, and log in."""
    chat.page.get_by_role("link", name="Admin").click()
    chat.page.get_by_label("Username").fill(ADMIN["ADMIN_USERNAME"])
    chat.page.get_by_label("Password").fill(ADMIN["ADMIN_PASSWORD"])
    chat.page.get_by_role("button", name="Log in").click()
    expect(chat.page.get_by_role("button", name="Log out")).to_be_visible()


def test_an_admin_finds_the_events_of_a_turn(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, config='{"pace_ms": 0}').until_live()
    log_in(chat)
    chat.page.goto(f"{server.url}/?config=%7B%22pace_ms%22%3A0%7D")
    chat.until_live()
    expect(chat.page.locator("#who")).to_have_text("admin")
    chat.say("Hello there")
    chat.until("completed")
    chat.last.get_by_role("link", name="Events of this turn").click()
    rows = chat.page.locator("#result_list")
    # The recorder writes in batches: the last events may come a moment later.
    eventually(lambda: chat.page.reload() and rows.count() and "chat.complete" in rows.inner_text())


def test_a_login_in_another_tab_makes_the_page_the_users(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, config='{"pace_ms": 0}').until_live()
    chat.say("As nobody")
    chat.until("completed")
    log_in(open_page(server.url, beside=chat.page))
    chat.say("As somebody")
    expect(chat.page.locator("#who")).to_have_text(ADMIN["ADMIN_USERNAME"])
    chat.page.get_by_role("link", name="New conversation").click()
    chat.say("As somebody")
    chat.until("completed")
    expect(chat.last.locator(".answer")).to_contain_text("2 words")


def test_every_control_has_a_name_and_the_answer_is_live(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server.url, config='{"pace_ms": 0}').until_live()
    chat.say("Hello there")
    chat.until("completed")
    nameless = chat.page.evaluate(
        """() => [...document.querySelectorAll("button, a[href], input, textarea, img, summary")]
            .filter((item) => item.offsetParent && !item.textContent.trim())
            .filter((item) => !item.ariaLabel && !item.labels?.length && !item.alt)
            .map((item) => item.outerHTML)"""
    )
    assert nameless == []
    expect(chat.answer).to_have_attribute("aria-live", "polite")
    assert chat.page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("width", [320, 390, 800])
def test_a_narrow_window_shows_everything_without_scrolling_sideways(
    server: ServerProcess, open_page: OpenPage, width: int
) -> None:
    chat = open_page(server.url, config='{"pace_ms": 0}').until_live()
    chat.page.set_viewport_size({"width": width, "height": 700})
    chat.attach("sales.csv", SALES)
    chat.say("What is the average revenue per region?")
    chat.until("completed")
    assert chat.page.evaluate("document.documentElement.scrollWidth") <= width
    assert chat.page.evaluate("document.querySelector('#scroller').scrollWidth") <= width
    chat.last.locator(".artifact").first.click()
    expect(chat.page.locator("#canvas-close")).to_be_in_viewport()
    chat.page.locator("#canvas-close").click()
    if width < 768:
        chat.page.get_by_role("button", name="Conversations").click()
    expect(chat.page.get_by_role("link", name="New conversation")).to_be_in_viewport()


def test_a_replay_is_shown_as_one_and_changes_nothing_of_the_turn(
    server: ServerProcess, open_page: OpenPage
) -> None:
    chat = open_page(server.url, config='{"pace_ms": 0}').until_live()
    chat.say("Tell me how many words this has.")
    chat.until("completed")
    said = chat.answer.inner_text()
    turn_id = chat.last.get_attribute("data-turn") or ""
    stream_id = chat.page.evaluate(
        "Object.values(sessionStorage).find((value) => /^[0-9a-f-]{36}$/.test(value))"
    )
    eventually(
        lambda: "chat.complete" in server.manage("replay", "--turn", turn_id, "--speed", "0", "--to", "jsonl")
    )
    server.manage("replay", "--turn", turn_id, "--speed", "0", "--to", f"stream:{stream_id}")
    replay = chat.page.locator(".turn.replay")
    expect(replay.locator(".replay-note")).to_contain_text(f"Replay of {turn_id}")
    expect(replay.locator(".answer")).to_have_text(said, use_inner_text=True)
    expect(replay.locator(".followups button")).to_have_count(0)
    expect(chat.page.locator(".turn:not(.replay)")).to_have_count(1)
    expect(chat.page.locator(".turn:not(.replay) .answer")).to_have_text(said, use_inner_text=True)
    expect(chat.page.get_by_role("button", name="Stop")).to_be_hidden()
    chat.page.reload()
    expect(chat.page.locator(".turn")).to_have_count(1)
