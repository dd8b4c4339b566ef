"""`make soak MINUTES=5`: a fleet on this machine under steady load and restarts; what it costs, and whether it loses.

Turns all the time, read by users that stay, that move from process to process, and that read slowly; every so often a
process is restarted or killed. Each ten seconds a row; at its end a verdict, and exit code 0 when all was well: every
user heard, once and in order, exactly what the recorder has, no resume ended in `reset`, and streams, subscriptions,
lag and memory went back. Bounded: a few dozen users, on loopback, for so many minutes.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg

from benchmarks.soak_users import Heard, Tally, User
from tests.databases import postgres_server
from tests.fleet import Fleet
from tests.processes import TestedProcess, rss_mib

KINDS = ("steady", "moving", "slow")
ROW_SECONDS = 10.0
DISTURB_SECONDS = 20.0
SETTLE_SECONDS = 60.0
RSS_FACTOR, RSS_MIB = 1.5, 64.0
"""A process may grow to so many times what it had in its first row, and this on top."""
HEAD = (
    f"{'s':>5} {'web MiB':>11} {'workers':>11} {'rec.':>5} {'valkey':>6} {'chan.':>5} {'subs.':>5} {'streams':>7} "
    f"{'lag':>6} {'turns':>6} {'cut':>4} {'back':>5} {'wrong':>5}  what happened"
)


class Soak:
    """One soak of one fleet."""

    def __init__(self, fleet: Fleet, users: int, seed: int) -> None:
        self.fleet = fleet
        self.tally = Tally()
        self.leaving = asyncio.Event()
        self.users = [
            User(fleet.urls, KINDS[number % len(KINDS)], seed + number, self.tally, self.leaving)
            for number in range(users)
        ]
        self._random = random.Random(seed)
        self._happened: list[str] = []
        self._first_rss: dict[int, float] = {}
        self._last_rss: dict[int, tuple[str, float]] = {}
        self._began = time.monotonic()

    async def run(self, minutes: float) -> bool:
        """Soak for so long; print rows and the verdict; return it."""
        subscriptions = sum(self.fleet.subscriptions().values())
        print(HEAD, flush=True)
        talking = [asyncio.create_task(user.run()) for user in self.users]
        beside = [asyncio.create_task(self._rows()), asyncio.create_task(self._disturb())]
        try:
            _, running = await asyncio.wait(
                [*talking, *beside], timeout=minutes * 60, return_when=asyncio.FIRST_EXCEPTION
            )
            self._fail_with([task for task in [*talking, *beside] if task not in running])
            beside[1].cancel()
            self.leaving.set()
            await asyncio.gather(*talking)
        finally:
            for task in [*talking, *beside]:
                task.cancel()
            await asyncio.gather(*talking, *beside, return_exceptions=True)
        return await asyncio.to_thread(self._verdict, subscriptions)

    @staticmethod
    def _fail_with(ended: "list[asyncio.Task[None]]") -> None:
        for task in ended:
            task.result()

    # --- rows -------------------------------------------------------------------------------------------

    async def _rows(self) -> None:
        while True:
            await asyncio.sleep(ROW_SECONDS)
            print(await asyncio.to_thread(self._row), flush=True)

    def _row(self) -> str:
        web, workers, recorders = (
            [self._rss(process) for process in group if process.alive]
            for group in (self.fleet.web, self.fleet.workers, self.fleet.recorders)
        )
        subscriptions = self.fleet.subscriptions()
        counts = self.tally.counts
        happened, self._happened = self._happened, []
        return (
            f"{time.monotonic() - self._began:>5.0f} {_joined(web):>11} {_joined(workers):>11} {_joined(recorders):>5} "
            f"{rss_mib(self.fleet.valkey.pid):>6.0f} {len(subscriptions):>5} {sum(subscriptions.values()):>5} "
            f"{self._streams():>7} {self.fleet.recorder_lag():>6} {len(self.tally.turns):>6} {counts['cut off']:>4} "
            f"{counts['came back']:>5} {len(self.tally.errors):>5}  {', '.join(happened)}"
        )

    def _rss(self, process: TestedProcess) -> float:
        found = process.rss_mib
        self._first_rss.setdefault(process.pid, found)
        self._last_rss[process.pid] = (process.name, found)
        return found

    def _streams(self) -> int:
        count = 0
        for url in self.fleet.urls:
            try:
                count += int(httpx.get(f"{url}/health", timeout=5).json().get("streams", 0))
            except (httpx.HTTPError, ValueError):
                continue
        return count

    # --- disturbing -------------------------------------------------------------------------------------

    async def _disturb(self) -> None:
        while True:
            await asyncio.sleep(DISTURB_SECONDS)
            process = self._random.choice(self.fleet.processes)
            how: Callable[[], object] = self._random.choice([process.restart, lambda p=process: _killed(p)])
            word = "restarted" if how == process.restart else "killed"
            await asyncio.to_thread(how)
            self._happened.append(f"{process.name} {word}")

    # --- verdict ----------------------------------------------------------------------------------------

    def _verdict(self, subscriptions: int) -> bool:
        wrong = list(self.tally.errors)
        if not _settled(lambda: self.fleet.recorder_lag() == 0):
            wrong.append(f"the recorder is still {self.fleet.recorder_lag()} entries behind")
        if not _settled(lambda: self._streams() == 0):
            wrong.append(f"{self._streams()} streams are still open")
        if not _settled(lambda: sum(self.fleet.subscriptions().values()) <= subscriptions):
            left = sum(self.fleet.subscriptions().values())
            wrong.append(f"{left} subscriptions are left, and {subscriptions} were there at the start")
        print(self._row(), flush=True)
        for pid, (name, last) in self._last_rss.items():
            if last > RSS_FACTOR * self._first_rss[pid] + RSS_MIB:
                wrong.append(f"{name} grew from {self._first_rss[pid]:.0f} to {last:.0f} MiB")
        for heard in self.tally.turns:
            wrong += self._compared(heard)
        self._print_verdict(wrong)
        return not wrong

    def _compared(self, heard: Heard) -> list[str]:
        """Compare what a user heard of a turn with what was recorded of it."""
        rows = self.fleet.query(
            "SELECT epoch || '-' || seq, event, marker, data::json->'delta'->>'text' FROM recorder_recordedenvelope "
            f"WHERE turn_id = '{heard.turn_id}' AND epoch IS NOT NULL ORDER BY epoch, seq"
        )
        recorded = "".join(
            text or "" for _, event, marker, text in rows if event == "chat_delta" and marker == "answer"
        )
        wrong = []
        if len(set(heard.positions)) != len(heard.positions):
            wrong.append(f"{heard.turn_id}: a position came twice")
        if sorted(heard.positions, key=_as_pair) != heard.positions:
            wrong.append(f"{heard.turn_id}: positions came out of order")
        if heard.text != recorded:
            wrong.append(f"{heard.turn_id}: heard {len(heard.text)} characters, {len(recorded)} are recorded")
        return wrong

    def _print_verdict(self, wrong: list[str]) -> None:
        counts = self.tally.counts
        ends = {
            name: counts[name] for name in ("success", "interrupted", "error", "rollback") if counts[name]
        }
        print(
            f"\n{len(self.tally.turns)} turns ({', '.join(f'{count} {name}' for name, count in ends.items())}), "
            f"{sum(len(heard.positions) for heard in self.tally.turns)} events heard, "
            f"{counts['came back']} times come back, {counts['sent again']} messages sent again"
        )
        for text in wrong[:20]:
            print(f"WRONG: {text}")
        print(
            "Verdict: all was well." if not wrong else f"Verdict: {len(wrong)} things went wrong.", flush=True
        )


def _joined(numbers: list[float]) -> str:
    return "+".join(f"{number:.0f}" for number in numbers) or "-"


def _killed(process: TestedProcess) -> None:
    process.kill()
    process.start()


def _settled(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SETTLE_SECONDS
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _as_pair(position: str) -> tuple[int, int]:
    epoch, _, seq = position.partition("-")
    return int(epoch), int(seq)


def main() -> int:
    """Read the arguments, and soak."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--users", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1, help="of what the users do and what is restarted")
    given = parser.parse_args()
    try:
        server = postgres_server()
    except psycopg.Error as error:
        print(f"The soak needs a PostgreSQL where it may make a database: POSTGRES_URL names it. {error}")
        return 2
    with (
        tempfile.TemporaryDirectory(prefix="backchannel-soak-") as folder,
        Fleet(Path(folder), server=server, env={"MESSAGE_RATE": ""}) as fleet,
    ):
        well = asyncio.run(Soak(fleet, given.users, given.seed).run(given.minutes))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
