"""`python -m project.health`: ask a web process of this host how it is, as a container's health check does.

Exit code 0 when it takes work, 1 when it drains or does not answer.
"""

import argparse
import http.client
import sys

from project.settings import ALLOWED_HOSTS

TIMEOUT_SECONDS = 5.0


def is_healthy(host: str, port: int) -> bool:
    """Tell whether a web process answers /health with 200.

    It is asked under a name of ALLOWED_HOSTS: under its address it would refuse.
    """
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/health", headers={"Host": _allowed_host()})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _allowed_host() -> str:
    first = next(iter(ALLOWED_HOSTS), "*")
    return "localhost" if first == "*" else str(first).lstrip(".")


def main() -> int:
    """Read the arguments and ask."""
    parser = argparse.ArgumentParser(prog="python -m project.health", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    return 0 if is_healthy(given.host, given.port) else 1


if __name__ == "__main__":
    sys.exit(main())
