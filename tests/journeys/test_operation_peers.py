"""Operations of the demo bundle over a real server: with a stream named, its tab alone hears; without, all do."""

import uuid

import httpx
import pytest

from tests.contract.transports import TRANSPORTS, Receiver
from tests.servers import ServerProcess

OPERATION = "/api/integrations/bundles/default/default/demo/operations/profile"
TABLE = {"data": {"name": "sales.csv", "text": "region,price\nNorth,1\nSouth,2\n"}}


def steps(receiver: Receiver) -> list[str]:
    return [e.data["event"]["status"] for e in receiver.received if e.data.get("type") == "chat.step"]


@pytest.mark.parametrize("kind", list(TRANSPORTS))
async def test_the_events_of_an_operation_go_to_the_named_peer_or_to_the_session(
    server: ServerProcess, kind: str
) -> None:
    async with (
        TRANSPORTS[kind](server.url) as named,
        TRANSPORTS["sse"](server.url, session_id=named.session_id) as other,
    ):
        headers = {"User-Session-ID": named.session_id}
        async with httpx.AsyncClient(base_url=server.url, headers=headers) as http:
            for name in {named.ready["stream_id"], named.stream_id}:
                response = await http.post(OPERATION, json=TABLE, headers={"KDC-Stream-ID": name})
                assert response.status_code == 200, response.text
                assert response.json()["result"]["name"] == "sales.csv"
                for _ in range(2):
                    await named.until("chat.step")
            heard = len(steps(named))
            await http.post(OPERATION, json=TABLE, headers={"KDC-Stream-ID": str(uuid.uuid4())})
            response = await http.post(OPERATION, json=TABLE)
            assert response.status_code == 200
            for receiver in (named, other):
                for _ in range(2):
                    await receiver.until("chat.step")
    assert steps(other) == ["started", "completed"]
    assert steps(named)[heard:] == ["started", "completed"]


async def test_an_operation_without_a_session_is_refused(server: ServerProcess) -> None:
    async with httpx.AsyncClient(base_url=server.url) as http:
        response = await http.post(OPERATION, json=TABLE)
        assert response.status_code == 401
        response = await http.get(
            OPERATION.replace("profile", "capabilities"), headers={"KDC-Stream-ID": "x"}
        )
        assert response.status_code == 401
