"""The recorder's side of the recorder stream: what it asks of Redis, in redis-py's synchronous client.

Nothing here tries again: whoever calls knows what may be repeated. Errors are redis.RedisError everywhere.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from comm.recorder_stream import CONSUMER_GROUP, StreamKeys

ANSWER_SECONDS = 5.0
"""A store that is silent for longer is away; it answers in under a millisecond."""
GONE_SECONDS = 3600.0
"""A consumer that has not asked for so long, and holds nothing, is the name of a process that is no more."""

RawEntry = tuple[bytes, dict[bytes, bytes]]

_BORN = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
-- A full store refuses a SET that changes nothing, too, and only a recorder makes room there.
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SET', KEYS[1], now) end
return {tonumber(redis.call('GET', KEYS[1])), now}
"""

# The size of an entry is given back only by whoever deleted it. An empty stream holds nothing, whatever was
# counted: an entry that somebody else deleted would be counted for ever.
_ACKNOWLEDGE = """
local deleted, freed = 0, 0
for i = 2, #ARGV, 2 do
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  if redis.call('XDEL', KEYS[1], ARGV[i]) == 1 then
    deleted = deleted + 1
    freed = freed + ARGV[i + 1]
  end
end
if redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[2])
elseif freed > 0 then
  redis.call('DECRBY', KEYS[2], freed)
end
return deleted
"""

# A taking that nobody has ended is handed out again, under its old id: whoever took it may have died with it.
_TAKE_GAPS = """
if redis.call('EXISTS', KEYS[2]) == 0 then
  if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
  redis.call('RENAME', KEYS[1], KEYS[2])
  local t = redis.call('TIME')
  redis.call('HSET', KEYS[2], '', t[1] .. '-' .. t[2])
end
return redis.call('HGETALL', KEYS[2])
"""

_END_TAKING = """
if redis.call('HGET', KEYS[1], '') == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

_RECORDED_UNTIL = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local born = tonumber(redis.call('GET', KEYS[4]) or 0)
if redis.call('EXISTS', KEYS[2]) == 1 or redis.call('EXISTS', KEYS[3]) == 1 then return {born, 0} end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
return {born, first and tonumber(string.match(first[1], '^%d+')) or now}
"""

# Deleting a consumer that holds entries would lose them: they would be nobody's.
_LEAVE = """
for _, told in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #told, 2 do consumer[told[i]] = told[i + 1] end
  local gone = consumer.name == ARGV[2] or consumer.idle > tonumber(ARGV[3])
  if gone and consumer.pending == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name) end
end
"""


class Life(NamedTuple):
    """The present life of the store: since when it has its data, and what time it is there.

    `untouched` says that nothing of its stream was ever deleted. `newest` is the last entry that it gave out.
    """

    born_ms: int
    now_ms: int
    untouched: bool
    newest: tuple[int, int]


class Taking(NamedTuple):
    """Gaps that were taken out of the hash: under one id however often they are handed out, until it is ended."""

    taking_id: str
    gaps: dict[bytes, bytes]


class Consumer(NamedTuple):
    """One recorder as the store knows it: entries that it holds, and ms since it last asked."""

    name: str
    pending: int
    idle_ms: int


class Lag(NamedTuple):
    """What is not recorded yet: entries, the age of the oldest, their bytes, groups with gaps; and the recorders."""

    waiting: int
    seconds: float
    held_bytes: int
    gaps: int
    consumers: list[Consumer]


def connect(url: str, *, seconds: float = ANSWER_SECONDS) -> redis.Redis:
    """Return a client of one store, whose calls answer within `seconds` or fail, and are never repeated.

    A repeated read would leave what the first one took with nobody who knows of it.
    """
    return redis.Redis.from_url(
        url,
        protocol=2,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
        client_name="backchannel-recorder",
    )


class RecorderStore:
    """One recorder's view of the stream, under a consumer name of its own; whoever makes it calls `close`."""

    def __init__(self, url: str, prefix: str, consumer: str, *, block_seconds: float) -> None:
        self.keys = StreamKeys.of(prefix)
        self.consumer = consumer
        self._block_ms = round(block_seconds * 1000)
        self._client = connect(url, seconds=ANSWER_SECONDS + block_seconds)
        self._scripts = {
            text: self._client.register_script(text)
            for text in (_BORN, _ACKNOWLEDGE, _TAKE_GAPS, _END_TAKING, _RECORDED_UNTIL, _LEAVE)
        }

    # --- the life of the store ----------------------------------------------------------------------

    def life(self) -> Life:
        """Return the present life of the store; one that has just begun is dated now."""
        born_ms, now_ms = self._run(_BORN, [self.keys.born])
        if not self._client.exists(self.keys.stream):
            return Life(born_ms, now_ms, True, (0, 0))
        stream = self._client.xinfo_stream(self.keys.stream)
        return Life(
            born_ms,
            now_ms,
            entry_numbers(stream["max-deleted-entry-id"]) == (0, 0),
            entry_numbers(stream["last-generated-id"]),
        )

    def join(self) -> None:
        """Make the consumer group where there is none. It says that this life of the store is noted down."""
        try:
            self._client.xgroup_create(self.keys.stream, CONSUMER_GROUP, "0", mkstream=True)
        except redis.ResponseError:
            # A full store refuses before it looks.
            if not self._has_group():
                raise

    def _has_group(self) -> bool:
        if not self._client.exists(self.keys.stream):
            return False
        groups = self._client.xinfo_groups(self.keys.stream)
        return any(group["name"] == CONSUMER_GROUP.encode() for group in groups)

    def recorded_until(self) -> tuple[int, int | None]:
        """Return when the store was born, and before when (ms) all is recorded; None while gaps wait."""
        born_ms, until_ms = self._run(
            _RECORDED_UNTIL, [self.keys.stream, self.keys.gaps, self.keys.taken, self.keys.born]
        )
        return born_ms, until_ms or None

    def leave(self) -> None:
        """Remove this consumer, and those of processes that are no more, where they hold nothing."""
        self._run(_LEAVE, [self.keys.stream], [CONSUMER_GROUP, self.consumer, round(GONE_SECONDS * 1000)])

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(redis.RedisError, OSError):
            self._client.close()

    # --- entries ------------------------------------------------------------------------------------

    def own(self, count: int) -> list[RawEntry]:
        """Return the oldest entries that this consumer holds: an answer of the store was lost on its way."""
        return self._read("0", count, None)

    def read(self, count: int, *, wait: bool) -> list[RawEntry]:
        """Take the next entries that nobody has; with `wait`, wait a moment for the first."""
        return self._read(">", count, self._block_ms if wait else None)

    def claim(self, count: int, idle_seconds: float) -> list[RawEntry]:
        """Take over entries that another recorder has held for too long."""
        answer: Any = self._client.xautoclaim(
            self.keys.stream, CONSUMER_GROUP, self.consumer, round(idle_seconds * 1000), count=count
        )
        entries: list[RawEntry] = answer[1]
        return entries

    def keep(self, entry_ids: Sequence[str]) -> None:
        """Say that these entries are still being worked on, so that nobody takes them over."""
        if entry_ids:
            self._client.xclaim(
                self.keys.stream, CONSUMER_GROUP, self.consumer, 0, list(entry_ids), justid=True
            )

    def acknowledge(self, sizes: dict[str, int]) -> int:
        """Delete what is committed (entry id → bytes) in one step; return how many of it were still there."""
        arguments: list[str | int] = [CONSUMER_GROUP]
        for entry_id, size in sizes.items():
            arguments += [entry_id, size]
        deleted: int = self._run(_ACKNOWLEDGE, [self.keys.stream, self.keys.held], arguments)
        return deleted

    def _read(self, after: str, count: int, block_ms: int | None) -> list[RawEntry]:
        answer: Any = self._client.xreadgroup(
            CONSUMER_GROUP, self.consumer, {self.keys.stream: after}, count=count, block=block_ms
        )
        return answer[0][1] if answer else []

    # --- gaps ---------------------------------------------------------------------------------------

    def take_gaps(self) -> Taking | None:
        """Take the gaps out of the hash, or those of a taking that was never ended; None when there are none."""
        flat: list[bytes] = self._run(_TAKE_GAPS, [self.keys.gaps, self.keys.taken])
        if not flat:
            return None
        gaps = dict(zip(flat[::2], flat[1::2], strict=True))
        return Taking(gaps.pop(b"").decode(), gaps)

    def end_taking(self, taking: Taking) -> None:
        """Forget gaps that are committed; of another taking nothing is touched."""
        self._run(_END_TAKING, [self.keys.taken], [taking.taking_id])

    def _run(self, text: str, keys: list[str], arguments: Sequence[str | int] = ()) -> Any:
        return self._scripts[text](keys=keys, args=arguments)


def lag_of(client: redis.Redis, keys: StreamKeys) -> Lag:
    """Return what is not recorded yet."""
    pipeline = client.pipeline(transaction=False)
    pipeline.xlen(keys.stream)
    pipeline.xrange(keys.stream, count=1)
    pipeline.get(keys.held)
    pipeline.hlen(keys.gaps)
    pipeline.hlen(keys.taken)
    pipeline.time()
    pipeline.xinfo_consumers(keys.stream, CONSUMER_GROUP)
    waiting, first, held, gaps, taken, (seconds, micros), consumers = pipeline.execute(raise_on_error=False)
    for answer in (waiting, first, held, gaps, taken):
        if isinstance(answer, Exception):
            raise answer
    now = seconds + micros / 1e6
    since = entry_numbers(first[0][0])[0] / 1000 if first else now
    # Without a group (no recorder has ever come) this one is an error.
    known = [] if isinstance(consumers, redis.ResponseError) else consumers
    return Lag(
        waiting,
        round(max(0.0, now - since), 3),
        int(held or 0),
        gaps + max(0, taken - 1),
        [Consumer(c["name"].decode(), c["pending"], c["idle"]) for c in known],
    )


def entry_numbers(entry_id: bytes | str) -> tuple[int, int]:
    """Return an entry's id as numbers, which sort as entries do; the first is the ms of its append."""
    text = entry_id if isinstance(entry_id, str) else entry_id.decode()
    ms, number = text.split("-")
    return int(ms), int(number)
