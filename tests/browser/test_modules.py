"""The page's modules by themselves, in the browser that runs them: Markdown, folding, back-off."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route

pytestmark = pytest.mark.browser

STATIC = Path(__file__).resolve().parents[2] / "relay" / "static" / "relay"
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    """An empty page at whose origin the modules are found."""

    def serve(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        if name:
            route.fulfill(path=STATIC / name, content_type="text/javascript")
        else:
            route.fulfill(body="<!doctype html><title>modules</title>", content_type="text/html")

    page = browser.new_page()
    page.route("http://modules.test/**", serve)
    page.goto("http://modules.test/")
    yield page
    page.close()


@pytest.fixture
def run(page: Page) -> Run:
    """Run the body of a function of `argument`, with the module's exports in `m`."""

    def run(module: str, body: str, argument: Any = None) -> Any:
        code = f"async (argument) => {{ const m = await import('http://modules.test/{module}'); {body} }}"
        return page.evaluate(code, argument)

    return run


HTML = """
    const box = document.createElement("div");
    box.append(m.renderMarkdown(argument));
    return box.innerHTML;
"""
LINK = 'target="_blank" rel="noopener noreferrer nofollow"'


@pytest.mark.parametrize(
    ("source", "html"),
    [
        ("**b** *i* `c` ~~d~~", "<p><strong>b</strong> <em>i</em> <code>c</code> <del>d</del></p>"),
        ("_i_ __b__", "<p><em>i</em> <strong>b</strong></p>"),
        ("***both***", "<p><strong><em>both</em></strong></p>"),
        ("a * b * c, snake_case_name, 2*3", "<p>a * b * c, snake_case_name, 2*3</p>"),
        ("``a`b``", "<p><code>a`b</code></p>"),
        ("`**not bold**`", "<p><code>**not bold**</code></p>"),
        ("\\*escaped\\*", "<p>*escaped*</p>"),
        ("one  \ntwo\nthree", "<p>one<br>two\nthree</p>"),
        ("# One\n## Two", "<h3>One</h3><h4>Two</h4>"),
        ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
        ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("It was\n1984. Indeed", "<p>It was\n1984. Indeed</p>"),
        ("- [x] a", '<ul><li class="task"><input type="checkbox" disabled="" checked="">a</li></ul>'),
        ("- [ ] b", '<ul><li class="task"><input type="checkbox" disabled="">b</li></ul>'),
        ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
        ("[a](https://x.test/y)", f'<p><a href="https://x.test/y" {LINK}>a</a></p>'),
        ("see https://x.test/a_(b).", f'<p>see <a href="https://x.test/a_(b)" {LINK}>https://x.test/a_(b)</a>.</p>'),
        ("[a](javascript:alert(1))", "<p>a</p>"),
        ("[a](data:text/html,x)", "<p>a</p>"),
        ("![p](https://x.test/p.png)", f'<p><a href="https://x.test/p.png" {LINK}>p</a></p>'),
        ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
        ("&lt;b&gt; <b>x</b>", "<p>&amp;lt;b&amp;gt; &lt;b&gt;x&lt;/b&gt;</p>"),
        ("", ""),
        ("**open", "<p>**open</p>"),
        ("[open](", "<p>[open](</p>"),
    ],
)  # fmt: skip
def test_markdown_becomes_nodes(run: Run, source: str, html: str) -> None:
    assert run("markdown.js", HTML, source) == html


def test_tables_keep_their_alignment_and_escaped_bars(run: Run) -> None:
    html = run("markdown.js", HTML, "| a | b |\n|:--|--:|\n| 1 \\| 2 | **3** |\n| 4 |")
    assert '<td class="to-left">1 | 2</td><td class="to-right"><strong>3</strong></td>' in html
    assert '<td class="to-left">4</td><td class="to-right"></td>' in html


def test_code_keeps_every_character(run: Run) -> None:
    html = run("markdown.js", HTML, "```py\na < b\n\n  # no heading\n```\nafter")
    assert "<code>a &lt; b\n\n  # no heading</code>" in html
    assert "<span>py</span>" in html
    assert html.endswith("<p>after</p>")


@pytest.mark.parametrize(
    "source",
    ["[", "![", "*", "**a", "_a ", "`", "> ", "- ", "1. ", "|", "|a ", "~~~", "\\", "<http:", "](", "a_b*c`"],
)
def test_no_input_makes_markdown_slow(run: Run, source: str) -> None:
    timed = """
        const begun = performance.now();
        m.renderMarkdown(argument.repeat(20000));
        return performance.now() - begun;
    """
    assert run("markdown.js", timed, source) < 2000


def test_a_growing_text_ends_as_the_whole_one_and_keeps_its_nodes(run: Run) -> None:
    text = "# Head\n\nOne *two* three\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n- x\n- y\n\n```\ncode\n```\n\nend"
    body = """
        const [grown, whole] = [document.createElement("div"), document.createElement("div")];
        const view = new m.MarkdownView(grown);
        for (let end = 1; end < argument.length; end++) view.update(argument.slice(0, end), true);
        const kept = grown.firstChild;
        view.update(argument, false);
        whole.append(m.renderMarkdown(argument));
        return [grown.innerHTML === whole.innerHTML, grown.firstChild === kept];
    """
    assert run("markdown.js", body, text) == [True, True]


def test_the_head_of_a_table_waits_for_its_second_line(run: Run) -> None:
    body = """
        const box = document.createElement("div");
        new m.MarkdownView(box).update("before\\n\\n| a | b", argument);
        return box.textContent;
    """
    assert run("markdown.js", body, True) == "before"
    assert run("markdown.js", body, False) == "before| a | b"


FOLD = """
    const told = [];
    const store = new m.Store({
        onTurn: () => {}, onConversation: () => {}, onService: () => {}, onHole: (id) => told.push(id),
    });
    const conversation = { session_id: "s", conversation_id: "c", turn_id: "t" };
    const fold = (type, data, at) => store.fold(type.replace(".", "_"), { type, conversation, data }, at);
    const start = (at) => fold("chat.start", { message: "hi" }, at);
    const delta = (text, index, at, more = {}) => store.fold("chat_delta", {
        type: "chat.delta", conversation, event: { agent: more.agent ?? "a" },
        delta: { text, index, marker: more.marker ?? "answer", completed: false }, extra: more.extra ?? {},
    }, at);
    const turn = () => store.turn("c", "t");
    const running = (first_position) =>
        ({ conversation_id: "c", turns: [{ turn_id: "t", status: "running", first_position }] });
"""


def test_events_seen_before_change_nothing(run: Run) -> None:
    body = (
        FOLD
        + """
        start("100-1"); delta("a", 0, "100-2"); delta("b", 1, "100-3");
        delta("a", 0, "100-2"); delta("b", 1, "100-3"); start("100-1");
        delta("c", 2, "100-10"); delta("d", 3, "99-99"); delta("e", 3, "101-1");
        return turn().answer;
    """
    )
    assert run("store.js", body) == "abce"


def test_a_turn_joined_in_the_middle_asks_for_its_beginning(run: Run) -> None:
    body = (
        FOLD
        + """
        delta("middle", 7, "100-9");
        const row = running("100-1");
        const from = store.loadConversation(row, { coveredFrom: "100-8" });
        start("100-2"); delta("begin ", 0, "100-3"); delta("middle", 7, "100-9");
        return [told[0], from, turn().answer, store.loadConversation(row, { coveredFrom: "100-1" })];
    """
    )
    assert run("store.js", body) == ["c", "100-1", "begin middle", ""]


def test_a_beginning_that_is_lost_is_not_asked_for_again(run: Run) -> None:
    body = (
        FOLD
        + """
        start("100-1"); delta("begin", 0, "100-2");
        store.doubt();
        const row = running("100-0");
        const from = store.loadConversation(row, { coveredFrom: "200-0", lostBefore: "200-0" });
        delta(" end", 9, "200-1");
        const before = turn().answer;
        fold("chat.complete", { final_answer: "begin and end" }, "200-2");
        return [from, before, turn().answer, told.length];
    """
    )
    assert run("store.js", body) == ["", "begin end", "begin and end", 0]


def test_index_0_restarts_an_artifact_but_no_text_that_never_counts(run: Run) -> None:
    body = (
        FOLD
        + """
        start("1-1");
        const svg = { marker: "canvas", extra: { artifact_name: "x" } };
        delta("old", 0, "1-2", svg); delta(" old", 1, "1-3", svg); delta("new", 0, "1-4", svg);
        delta("un", 0, "1-5", { marker: "thinking" }); delta("counted", 0, "1-6", { marker: "thinking" });
        delta("one ", 0, "1-7"); delta("two", 1, "1-8"); delta("other", 0, "1-9", { agent: "b" });
        const text = (key) => turn().streams.get(key).text;
        return [text("canvas:x"), text("thinking"), text("answer")];
    """
    )
    assert run("store.js", body) == ["new", "uncounted", "one twoother"]


def test_an_ended_turn_read_from_the_server_takes_no_events(run: Run) -> None:
    body = (
        FOLD
        + """
        const outcome = { markers: [{ marker: "answer", text: "whole" }], final_answer: "whole" };
        const turns = [{ turn_id: "t", status: "completed", outcome }];
        store.loadConversation({ conversation_id: "c", turns });
        start("1-1"); delta("again", 0, "1-2");
        return [turn().answer, turn().status];
    """
    )
    assert run("store.js", body) == ["whole", "completed"]


def test_back_off_doubles_up_to_half_a_minute(run: Run) -> None:
    body = "return [0, 1, 2, 4, 5, 50].map((attempt) => m.backoffMs(attempt, () => 0.5));"
    assert run("stream.js", body) == [1500, 2500, 4500, 16500, 30000, 30000]


def test_positions_compare_as_pairs_of_numbers(run: Run) -> None:
    body = "return argument.map(([a, b]) => Math.sign(m.comparePositions(a, b)));"
    pairs = [["1-2", "1-10"], ["2-1", "1-99"], ["5-5", "5-5"], ["", "1-1"], ["x", ""]]
    assert run("position.js", body, pairs) == [-1, 1, 0, -1, 0]
