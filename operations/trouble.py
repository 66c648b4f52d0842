"""Errors of the connections in one sentence each, with the next step; without texts that could hold a signature."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import requests
from azure.core.exceptions import AzureError, ClientAuthenticationError
from azure.identity import CredentialUnavailableError
from azure.servicebus.exceptions import (
    MessageSizeExceededError,
    MessagingEntityDisabledError,
    MessagingEntityNotFoundError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusError,
    ServiceBusQuotaExceededError,
)

from operations.namespace import ServiceBusTimeout
from shared.errors import InvalidSettings, InvoicingFailure, TokenUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

_DOCTOR = "operations doctor shows which connection is broken."
_LOGIN = "Run az login, then repeat the command."


@dataclass(frozen=True)
class Trouble:
    """What went wrong, as a sentence, and the next step."""

    sentence: str
    next_step: str = _DOCTOR

    def __str__(self) -> str:
        return f"{self.sentence}\n{self.next_step}" if self.next_step else self.sentence


def explain(error: BaseException) -> Trouble | None:
    """Return what an error of a connection, a login or the settings means; None for anything else, which is a bug."""
    if not isinstance(
        error, InvoicingFailure | AzureError | ServiceBusTimeout | OSError | requests.RequestException
    ):
        return None
    if isinstance(error, InvalidSettings):
        return Trouble(str(error), "Correct the app settings that are named, then repeat the command.")
    if isinstance(error, ServiceBusTimeout):
        return Trouble(str(error))
    return _of_login(error) or _of_network(error) or _of_service_bus(error) or _other(error)


def _of_login(error: BaseException) -> Trouble | None:
    for each in _chain(error):
        if not isinstance(each, ClientAuthenticationError | TokenUnavailable):
            continue
        text = str(each)
        if "Azure CLI not found" in text:
            return Trouble(
                "There is no managed identity on this machine, and the Azure CLI is not installed.",
                "Install the Azure CLI, run az login, then repeat the command.",
            )
        if "az login" in text or "AADSTS" in text:
            return Trouble("The login of the Azure CLI is missing or has expired.", _LOGIN)
        if isinstance(each, CredentialUnavailableError):
            return Trouble("This machine has no identity that gives tokens.", _LOGIN)
    return None


def _of_network(error: BaseException) -> Trouble | None:
    is_dataverse = isinstance(error, InvoicingFailure | requests.RequestException)
    where = "Dataverse" if is_dataverse else "Service Bus"
    for each in _chain(error):
        if isinstance(each, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(each):
            return Trouble(
                f"The certificate of {where} is not trusted: a proxy may inspect TLS, or the address is wrong.",
                "Name its authority in SSL_CERT_FILE and REQUESTS_CA_BUNDLE. " + _DOCTOR,
            )
        if isinstance(each, socket.gaierror) or "NameResolutionError" in type(each).__name__:
            return Trouble(f"The host name of {where} has no address.")
        if isinstance(each, ConnectionRefusedError):
            return Trouble(f"{where} refuses the connection.")
    return None


def _of_service_bus(error: BaseException) -> Trouble | None:
    if not isinstance(error, ServiceBusError):
        return None
    if is_entity_missing(error):
        return Trouble("The namespace has no such queue, topic or subscription: a setting names another one.")
    for kind, sentence in _SENTENCES.items():
        if isinstance(error, kind):
            return Trouble(sentence)
    return Trouble(f"The connection to Service Bus failed: {type(error).__name__}.")


_REFUSED = "Service Bus refuses the key or the login: it is wrong, or lacks a role on the entity."
_SENTENCES: dict[type[ServiceBusError], str] = {
    MessagingEntityDisabledError: "The queue or topic is disabled for this use.",
    ServiceBusAuthenticationError: _REFUSED,
    ServiceBusAuthorizationError: _REFUSED,
    MessageSizeExceededError: "Service Bus refuses a message of this size.",
    ServiceBusQuotaExceededError: "The queue is full.",
}


def _other(error: BaseException) -> Trouble | None:
    if isinstance(error, InvoicingFailure):
        # Its own advice is for a parked message.
        return Trouble(str(error))
    if isinstance(
        error, AzureError | requests.RequestException | ConnectionError | TimeoutError | ssl.SSLError
    ):
        return Trouble(f"The connection failed: {type(error).__name__}.")
    return None


def is_entity_missing(error: BaseException) -> bool:
    """Whether Service Bus says that there is no such entity: in Azure, the token exchange already responds 404."""
    if isinstance(error, ServiceBusAuthenticationError):
        # The SDK's own text names neither the status nor the entity; the error that it wraps does.
        return getattr(error.inner_exception, "status_code", None) == HTTPStatus.NOT_FOUND
    return isinstance(error, MessagingEntityNotFoundError)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes, the outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
