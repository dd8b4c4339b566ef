"""How far the recorder process is behind, for people who look at its rows."""

import redis

from comm.recorder_stream import StreamKeys

from .conf import recorder_settings
from .store import Lag, connect, lag_of

ANSWER_SECONDS = 1.0
"""A page of the admin waits no longer for this one line."""
ALIVE_SECONDS = 30.0
"""A recorder asks twice a second, unless it waits for the database."""


def lag_text() -> str:
    """Say how far the recorder process is behind; empty where each server records for itself."""
    conf = recorder_settings()
    if not conf.REDIS_URL:
        return ""
    try:
        with connect(conf.REDIS_URL, seconds=ANSWER_SECONDS) as client:
            return described(lag_of(client, StreamKeys.of(conf.REDIS_PREFIX)))
    except (redis.RedisError, OSError):
        return "How far the recorder is behind cannot be told: Redis does not answer."


def described(lag: Lag) -> str:
    """Say in a sentence or two what is not recorded yet, and whether somebody is at it."""
    said = "Everything that was published is recorded."
    if lag.waiting:
        them = "envelope is" if lag.waiting == 1 else "envelopes are"
        said = f"{lag.waiting:,} {them} not recorded yet; the oldest has waited for {lag.seconds:.1f} s."
    if lag.gaps:
        whose = "session or project" if lag.gaps == 1 else "sessions or projects"
        said += f" Gaps of {lag.gaps:,} {whose} are not written down yet."
    if not any(consumer.idle_ms < ALIVE_SECONDS * 1000 for consumer in lag.consumers):
        said += " No recorder is running: start one with manage.py runrecorder."
    return said
