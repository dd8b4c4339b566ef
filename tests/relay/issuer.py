"""Somebody else's login: keys, tokens, and the address where its public keys are."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

ISSUER, AUDIENCE, CLIENT = "https://login.example.com/", "chat-api", "chat-page"


class Issuer:
    """Signs tokens with the newest of its keys; `url` is its JWKS, `asked` how often that was fetched.

    It is silent while `answers` is cleared.
    """

    def __init__(self) -> None:
        self.keys: dict[str, rsa.RSAPrivateKey] = {}
        self.asked = 0
        self.status = 200
        self.answers = threading.Event()
        self.answers.set()
        self.url = ""
        self.rotate()

    def rotate(self) -> None:
        """Sign with a new key from here on."""
        self.kid = f"key-{len(self.keys) + 1}"
        self.keys[self.kid] = rsa.generate_private_key(65537, 2048)

    def token(self, *, kid: str | None = None, key: Any = None, **claims: Any) -> str:
        """Return a token of a user named ada, or what the claims say; None leaves a claim out."""
        said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "user-ada", "exp": time.time() + 60, **claims}
        said = {name: value for name, value in said.items() if value is not None}
        named = self.kid if kid is None else kid
        return jwt.encode(said, key or self.keys[self.kid], "RS256", headers={"kid": named})

    def document(self) -> bytes:
        """Return the public keys."""
        keys = []
        for kid, key in self.keys.items():
            keys.append({**jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid})
        return json.dumps({"keys": [{**key, "use": "sig", "alg": "RS256"} for key in keys]}).encode()


@contextmanager
def serving(issuer: Issuer) -> Iterator[Issuer]:
    """Serve an issuer's keys on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked += 1
            issuer.answers.wait(60)
            body = issuer.document()
            self.send_response(issuer.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    issuer.url = f"http://127.0.0.1:{server.server_port}/jwks.json"
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
