"""The integrations endpoint: operations of bundles over HTTP."""

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from relay.exceptions import BadRequest, MethodNotAllowed

from . import bodies
from .checking import check_storable, convert, identifier
from .operations import OperationRequest, call_operation
from .views import Endpoint, caller_from, path_part

STREAM_ID_CHARACTERS = 200
OWN_PARAMETERS = ("bearer_token", "id_token", "ticket", "user_session_id", "stream_id", "conversation_id")
"""Of the query: what is ours, and no data of the operation."""


class OperationView(Endpoint):
    """GET and POST /api/integrations/bundles/{tenant}/{project}/{bundle}/operations/{operation}."""

    query_tokens = True

    def get(self, request: Request, **path: str) -> Response:
        """Carry out an operation whose data is the query."""
        query = {name: value for name, value in self.http.GET.items() if name not in OWN_PARAMETERS}
        return self._answer("GET", path, query, self.http.GET.get("conversation_id"))

    def post(self, request: Request, **path: str) -> Response:
        """Carry out an operation whose data is the body's `data` object."""
        bodies.check_length(self.http)
        document = convert(bodies.read_json(self.http), dict[str, Any], "body")
        check_storable(document)
        data = document.get("data")
        if data is not None and not isinstance(data, dict):
            raise BadRequest("data", "expected an object")
        return self._answer("POST", path, data or {}, document.get("conversation_id"))

    def _answer(
        self, method: str, path: dict[str, str], data: dict[str, Any], conversation_id: Any
    ) -> Response:
        # The header alone: a stream in the query is no wish to have the events there.
        stream_id = identifier(self.http.headers.get("KDC-Stream-ID"), "KDC-Stream-ID", STREAM_ID_CHARACTERS)
        session = self.resolve()
        check_storable(data, ("data",))
        asked = OperationRequest(
            tenant=path_part(path["tenant"]),
            project=path_part(path["project"]),
            bundle_id=path_part(path["bundle_id"]),
            operation=path_part(path["operation"]),
            method=method,
            data=data,
            stream_id=stream_id,
            conversation_id=identifier(conversation_id, "conversation_id"),
        )
        try:
            return Response(call_operation(caller_from(self.http, session), asked))
        except MethodNotAllowed as error:
            # The framework would name every method that this view has.
            self.headers.update(error.headers())
            raise
