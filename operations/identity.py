"""Whose access token it is, by what the token itself says."""

from __future__ import annotations

import base64
import binascii
import getpass
import json
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from azure.servicebus import parse_connection_string

from operations.environment import service_bus_settings_of
from shared.credential import SERVICE_BUS_SCOPE, Identities
from shared.errors import TokenUnavailable
from shared.settings import ConnectionString

if TYPE_CHECKING:
    from collections.abc import Mapping

_TOKEN_SECONDS = 20.0


@dataclass(frozen=True)
class TokenOwner:
    """Whom a token belongs to, by what it says itself; empty where it says nothing."""

    client_id: str
    object_id: str
    tenant_id: str

    def __str__(self) -> str:
        if not self.object_id:
            return "an identity that the token does not name"
        return f"client id {self.client_id}, object id {self.object_id}, tenant {self.tenant_id}"


def owner_of(token: str) -> TokenOwner:
    """Return whose token it is. The token is not verified: that is for those to whom it is shown."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        texts = {str(name): str(value) for name, value in claims.items()}
    except (IndexError, ValueError, AttributeError, RecursionError, binascii.Error):
        # A token need not be readable for its holder.
        texts = {}
    return TokenOwner(
        texts.get("appid", texts.get("azp", "")).lower(), texts.get("oid", "").lower(), texts.get("tid", "")
    )


def operator(environment: Mapping[str, str]) -> dict[str, str]:
    """Return who runs a command, for a record of what was done: the account of this machine and of Azure."""
    who = {"account": getpass.getuser(), "machine": socket.gethostname()}
    connection = service_bus_settings_of(environment).connection
    if isinstance(connection, ConnectionString):
        return who | {"key": parse_connection_string(connection.value).shared_access_key_name or ""}
    identity = Identities(environment).of(connection.client_id)
    try:
        token = identity.token(SERVICE_BUS_SCOPE, _TOKEN_SECONDS)
    except TokenUnavailable as error:
        return who | {"identity": f"not known: {error}"}
    return who | {"identity": str(owner_of(token))}
