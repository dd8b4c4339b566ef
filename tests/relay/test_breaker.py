"""The circuit breaker."""

from relay.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_failures_in_a_row_and_lets_one_try_after_the_time() -> None:
    clock = Clock()
    breaker = Breaker(failures=3, reset_seconds=10, clock=clock)
    for _ in range(2):
        breaker.failed()
    assert breaker.seconds_left() == 0
    breaker.failed()
    assert breaker.seconds_left() == 10
    clock.now += 4
    assert breaker.seconds_left() == 6
    clock.now += 6
    assert breaker.seconds_left() == 0, "one may try"
    assert breaker.seconds_left() == 10, "the others wait for how that ends"
    breaker.failed()
    assert breaker.seconds_left() == 10
    clock.now += 10
    assert breaker.seconds_left() == 0
    breaker.succeeded()
    assert breaker.seconds_left() == 0
    assert breaker.seconds_left() == 0


def test_a_success_forgets_earlier_failures() -> None:
    breaker = Breaker(failures=2, reset_seconds=10)
    for _ in range(5):
        breaker.failed()
        breaker.succeeded()
    assert breaker.seconds_left() == 0
