"""An exchange through an adapter of `requests`: what tests and the rig use instead of sockets to Dataverse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import requests

from shared.http_exchange import ConnectionBroken, NoResponse, encoded
from shared.http_message import HttpResponse

if TYPE_CHECKING:
    from requests.adapters import BaseAdapter

    from shared.http_exchange import Request


class AdapterExchange:
    """Hands requests to an adapter; `timeout` of the adapter is what the exchange has."""

    def __init__(self, origin: str, adapter: BaseAdapter) -> None:
        self._origin = origin
        self._adapter = adapter

    def send(self, request: Request, seconds: float) -> HttpResponse:
        """See shared.http_exchange.Exchange."""
        prepared = requests.PreparedRequest()
        prepared.method = request.method
        prepared.url = encoded(self._origin + request.path)
        prepared.headers = requests.structures.CaseInsensitiveDict(request.headers)
        prepared.body = request.body or None
        try:
            response = self._adapter.send(prepared, timeout=(seconds, seconds))
            body = response.content
        except requests.RequestException as error:
            broken = isinstance(error, requests.ConnectionError) and not isinstance(error, requests.Timeout)
            raise (ConnectionBroken if broken else NoResponse)(type(error).__name__) from error
        headers = {name.lower(): value for name, value in response.headers.items()}
        return HttpResponse(response.status_code, headers, body)

    def close(self) -> None:
        """See shared.http_exchange.Exchange."""
        self._adapter.close()
