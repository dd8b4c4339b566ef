"""Questions to the database that come together: each has its own answer, in the order of the questions."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from relay.together import QUESTIONS_AT_ONCE, Together

pytestmark = pytest.mark.django_db(transaction=True)


class Desk:
    """Answers with the square; the first visit waits until it may go on."""

    def __init__(self) -> None:
        self.visits: list[list[int]] = []
        self.began, self.go_on = threading.Event(), threading.Event()
        self.together = Together(self._answer)

    def _answer(self, questions: list[int]) -> list[int | Exception]:
        self.visits.append(questions)
        self.began.set()
        assert self.go_on.wait(20)
        if -1 in questions:
            raise ConnectionError("the database is away")
        return [ValueError(str(n)) if n % 3 == 0 else n * n for n in questions]

    async def ask_while_busy(self, *questions: int) -> list[asyncio.Task[int]]:
        """Ask 1, which is answered later, and meanwhile these."""
        first = asyncio.create_task(self.together.ask(1))
        await asyncio.to_thread(self.began.wait, 20)
        asked = [first, *(asyncio.create_task(self.together.ask(n)) for n in questions)]
        await asyncio.sleep(0)
        return asked


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    yield desk
    desk.go_on.set()
    await desk.together.aclose()


async def outcomes(asked: list[asyncio.Task[int]]) -> list[object]:
    return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)


async def test_what_comes_while_a_visit_is_under_way_goes_together(desk: Desk) -> None:
    asked = await desk.ask_while_busy(2, 4, 5)
    assert desk.visits == [[1]]
    desk.go_on.set()
    assert await outcomes(asked) == [1, 4, 16, 25]
    assert desk.visits == [[1], [2, 4, 5]]


async def test_an_answer_that_is_an_exception_is_raised_for_who_asked(desk: Desk) -> None:
    asked = await desk.ask_while_busy(2, 3, 4)
    desk.go_on.set()
    one, two, three, four = await outcomes(asked)
    assert (one, two, four) == (1, 4, 16)
    assert isinstance(three, ValueError)


async def test_a_visit_that_fails_fails_for_those_in_it_and_the_next_one_is_made(desk: Desk) -> None:
    asked = await desk.ask_while_busy(2, -1)
    desk.go_on.set()
    one, two, broken = await outcomes(asked)
    assert one == 1
    assert isinstance(two, ConnectionError)
    assert isinstance(broken, ConnectionError)
    assert await desk.together.ask(4) == 16


async def test_a_visit_is_bounded_and_keeps_the_order(desk: Desk) -> None:
    questions = [3 * n + 1 for n in range(2 * QUESTIONS_AT_ONCE + 5)]
    asked = await desk.ask_while_busy(*questions)
    desk.go_on.set()
    assert await outcomes(asked) == [1, *(n * n for n in questions)]
    assert [len(visit) for visit in desk.visits] == [1, QUESTIONS_AT_ONCE, QUESTIONS_AT_ONCE, 5]
    assert [n for visit in desk.visits for n in visit] == [1, *questions]


async def test_an_asker_that_is_cancelled_leaves_the_others_their_answers(desk: Desk) -> None:
    asked = await desk.ask_while_busy(2, 4, 5)
    asked[0].cancel()
    asked[2].cancel()
    desk.go_on.set()
    one, two, four, five = await outcomes(asked)
    assert isinstance(one, asyncio.CancelledError)
    assert isinstance(four, asyncio.CancelledError)
    assert (two, five) == (4, 25)
    assert desk.visits == [[1], [2, 5]]


async def test_closing_cancels_whoever_waits(desk: Desk) -> None:
    asked = await desk.ask_while_busy(2)
    closing = asyncio.create_task(desk.together.aclose())
    await asyncio.sleep(0)
    desk.go_on.set()
    await asyncio.wait_for(closing, 20)
    assert {type(outcome) for outcome in await outcomes(asked)} == {asyncio.CancelledError}


def test_another_loop_finds_nothing_of_the_one_before() -> None:
    together: Together[int, int] = Together(lambda questions: [n + 1 for n in questions])
    for _ in range(2):
        assert asyncio.run(together.ask(6)) == 7
