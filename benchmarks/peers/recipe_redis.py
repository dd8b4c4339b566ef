"""The plain recipe on channels_redis' pub/sub layer."""

import os

from .recipe import application, configure, publish

__all__ = ["application", "publish"]

configure(
    {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [os.environ["REDIS_URL"]]},
    }
)
