"""A WSGI application on a loopback address, in threads of its own: the base of the sandbox's HTTP servers."""

import json
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus

from cheroot import wsgi

from sandbox.start_stop import StartStop

StartResponse = Callable[[str, list[tuple[str, str]]], object]


class HttpServer(StartStop):
    """Serves from `start` to `stop`; a context manager. `name` is the thread's."""

    def __init__(self, name: str, server: wsgi.Server) -> None:
        self._name = name
        self._server = server
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """Host and port, as in a URL; valid after `start`."""
        host, port = self._server.bind_addr[:2]
        return f"{host}:{port}"

    def start(self) -> None:
        """Listen; returns when connections are accepted. Raises OSError where the port is taken."""
        self._server.prepare()
        self._listening()
        self._thread = threading.Thread(target=self._server.serve, name=self._name, daemon=True)
        self._thread.start()

    def _listening(self) -> None:
        """Do what needs the port, before the first request."""

    def stop(self) -> None:
        """Close the socket and wait for the threads, for a few seconds at most."""
        self._server.stop()
        if self._thread is not None:
            self._thread.join(timeout=5)


def respond_json(start_response: StartResponse, status: HTTPStatus, content: object) -> Iterable[bytes]:
    """Respond with a JSON document that no cache keeps."""
    body = json.dumps(content, ensure_ascii=False).encode()
    headers = [
        ("Content-Type", "application/json; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
    ]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]
