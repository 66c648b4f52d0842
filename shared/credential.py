"""The function's identity (a managed identity in Azure, a developer's Azure CLI login elsewhere) and its access tokens.

One `Identity` serves all connections of the process and keeps its tokens itself, so that an endpoint that is silent,
slow or failing matters only when a token is about to expire: a new one is fetched in the background from half of its
lifetime on, and a caller with a valid one never waits. Fetching runs in a thread of its own, since the SDK may block.
"""

from __future__ import annotations

import json
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import requests
from azure.core.credentials import AccessToken, AccessTokenInfo
from azure.core.pipeline.transport import RequestsTransport
from azure.identity import AzureCliCredential, ManagedIdentityCredential

from shared.bounded_call import BoundedCalls
from shared.deadline_socket import CallTimeout, seconds_left
from shared.errors import TokenUnavailable
from shared.http_exchange import DeadlineAdapter
from shared.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from azure.core.credentials import TokenCredential
    from azure.core.pipeline import PipelineResponse

    from shared.bounded_call import Call
    from shared.clock import Deadline

    ResponseHook = Callable[[PipelineResponse[Any, Any]], None]

# As azure-servicebus asks for it.
SERVICE_BUS_SCOPE = "https://servicebus.azure.net//.default"
# An endpoint on the same machine responds in milliseconds; a token that takes longer than this is an outage.
_FETCH_SECONDS = 20.0
# A token is not used in its last minute: the call that needs it takes time, too.
_LAST_SECONDS = 60.0
# After a fetch in the background has failed, the next one is not made sooner than this.
_PAUSE_SECONDS = 30.0
# Refused tokens (401) are replaced at most this often: where a new one is refused too, the set-up is wrong.
_RENEWAL_SECONDS = 60.0
_MAX_TEXT = 300
# What a header can hold. Another text would make each request fail like a bug.
_TOKEN = re.compile(r"[!-~]+")


class Tokens(Protocol):
    """Access tokens for one scope."""

    def token(self, deadline: Deadline) -> str:
        """Return an access token; raises TokenUnavailable."""

    def renewed(self, refused: str, deadline: Deadline) -> str | None:
        """Return another token than one that was refused, or None if there is none."""


class Identities:
    """The identities that a process has: one in general, whose tokens all connections share."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._lock = threading.Lock()
        self._by_client_id: dict[str | None, Identity] = {}

    def of(self, client_id: str | None) -> Identity:
        """Return the identity with this client id, always the same object; see `build_credential`."""
        with self._lock:
            if client_id not in self._by_client_id:
                self._by_client_id[client_id] = Identity(
                    lambda hook: build_credential(self._environment, client_id, hook)
                )
            return self._by_client_id[client_id]


class Identity:
    """One identity's access tokens, cached by scope; safe under many threads.

    It is a TokenCredential too, so the SDK's clients take their tokens from the same cache. `build` makes the SDK's
    credential, which reports the responses of its endpoint to the function that it is given; it is built anew where
    its own cache has a refused token. `now` is the time in seconds since the epoch. A fetch that takes longer than
    `fetch_seconds` is abandoned.
    """

    def __init__(
        self,
        build: Callable[[ResponseHook], TokenCredential],
        *,
        now: Callable[[], float] = time.time,
        fetch_seconds: float = _FETCH_SECONDS,
    ) -> None:
        self._build = build
        self._now = now
        self._fetch_seconds = fetch_seconds
        self._calls = BoundedCalls("token", 4)
        self._lock = threading.Lock()
        self._source: _Source | None = None
        self._tokens: dict[str, _Token] = {}
        self._fetches: dict[str, _Fetch] = {}
        self._renewed_at: dict[str, float] = {}

    def tokens(self, scope: str) -> Tokens:
        """Return the tokens for one scope."""
        return _ScopedTokens(self, scope)

    def token(self, scope: str, seconds: float) -> str:
        """Return an access token within `seconds`; raises TokenUnavailable, with the reason but never a token."""
        return self._valid(scope, seconds).value

    def renewed(self, scope: str, refused: str, seconds: float) -> str | None:
        """Return another token than the `refused` one, or None if none could be fetched.

        One that was refused may still be valid, so it stays in use until there is another one.
        """
        try:
            with self._lock:
                kept = self._tokens.get(scope)
                if kept is not None and kept.value != refused:
                    return kept.value
                if scope not in self._fetches:
                    if self._now() - self._renewed_at.get(scope, 0.0) < _RENEWAL_SECONDS:
                        return None
                    self._renewed_at[scope] = self._now()
                    # Its own cache holds the refused token.
                    self._source = None
                fetch = self._fetch(scope)
            outcome = fetch.result(min(seconds, self._fetch_seconds))
        except OSError:
            return None
        return outcome.value if isinstance(outcome, _Token) and outcome.value != refused else None

    def renew(self, scope: str, seconds: float) -> None:
        """Fetch another token because a peer refused the one in use; if there is none, that one stays in use."""
        with self._lock:
            token = self._tokens.get(scope)
        if token is not None:
            self.renewed(scope, token.value, seconds)

    def get_token(self, *scopes: str, **_: object) -> AccessToken:
        """Return a token as azure-servicebus asks for it, within the deadline of the calling thread."""
        token = self._valid(scopes[0], seconds_left())
        return AccessToken(token.value, int(token.expires_at))

    def get_token_info(self, *scopes: str, **_: object) -> AccessTokenInfo:
        """Return a token as azure-core asks for it, within the deadline of the calling thread."""
        token = self._valid(scopes[0], seconds_left())
        return AccessTokenInfo(token.value, int(token.expires_at))

    def _valid(self, scope: str, seconds: float) -> _Token:
        token = self._usable(scope)
        if token is None:
            return self._fetched(scope, seconds)
        if self._now() >= token.refresh_at:
            # No thread for it is no reason to fail: the token is valid, and the next caller tries again.
            with suppress(OSError), self._lock:
                if self._tokens[scope] is token:
                    self._fetch(scope)
        return token

    def _usable(self, scope: str) -> _Token | None:
        token = self._tokens.get(scope)
        return token if token is not None and self._now() < token.expires_at - _LAST_SECONDS else None

    def _fetched(self, scope: str, seconds: float) -> _Token:
        try:
            with self._lock:
                token = self._usable(scope)
                if token is not None:
                    return token
                fetch = self._fetch(scope)
            outcome = fetch.result(min(seconds, self._fetch_seconds))
        except CallTimeout as error:
            raise TokenUnavailable(f"The identity gave no token for {scope} in time.") from error
        except OSError as error:
            raise TokenUnavailable(f"The identity gave no token for {scope}: {error}") from error
        if isinstance(outcome, _Token):
            return outcome
        # Not the error itself, which many threads may share.
        raise TokenUnavailable(str(outcome)) from outcome

    def _fetch(self, scope: str) -> Call[_Token | TokenUnavailable]:
        """Return the fetch that is in progress, or start one; with the lock held.

        Raises OSError if no thread is available.
        """
        stuck = self._fetches.get(scope)
        if stuck is not None and time.monotonic() < stuck.until:
            return stuck.call
        if stuck is not None:
            # It may hold locks of its credential.
            self._source = None
        mark = object()
        call = self._calls.start(lambda: self._ask(scope, mark), self._fetch_seconds)
        self._fetches[scope] = _Fetch(mark, call, time.monotonic() + self._fetch_seconds)
        return call

    def _ask(self, scope: str, mark: object) -> _Token | TokenUnavailable:
        """Fetch with the SDK and keep the result; for the thread that was started for it."""
        with self._lock:
            source = self._source = self._source or _Source(self._build)
        outcome = source.ask(scope, self._now)
        with self._lock:
            kept = self._tokens.get(scope)
            if isinstance(outcome, _Token):
                self._tokens[scope] = outcome
            elif kept is not None:
                self._tokens[scope] = replace(kept, refresh_at=self._now() + _PAUSE_SECONDS)
            if self._fetches[scope].mark is mark:
                del self._fetches[scope]
        return outcome


@dataclass(frozen=True)
class _Token:
    value: str
    expires_at: float
    refresh_at: float


@dataclass(frozen=True)
class _Fetch:
    """A fetch in progress; `until`: after that it counts as stuck."""

    mark: object
    call: Call[_Token | TokenUnavailable]
    until: float


@dataclass(frozen=True)
class _ScopedTokens:
    identity: Identity
    scope: str

    def token(self, deadline: Deadline) -> str:
        return self.identity.token(self.scope, deadline.remaining)

    def renewed(self, refused: str, deadline: Deadline) -> str | None:
        return self.identity.renewed(self.scope, refused, deadline.remaining)


# ---------------------------------------------------------------------------------------------- the SDK's credentials


def build_credential(
    environment: Mapping[str, str], client_id: str | None, hook: ResponseHook | None = None
) -> TokenCredential:
    """Return the credential for where the code runs: `IDENTITY_ENDPOINT` is set wherever there is an identity.

    `client_id` names the user-assigned identity; None means the system-assigned one.
    """
    if "IDENTITY_ENDPOINT" not in environment:
        return AzureCliCredential(process_timeout=15)
    session = requests.Session()
    # The endpoint is on the same machine: neither a proxy nor ~/.netrc concerns it.
    session.trust_env = False
    session.mount("http://", DeadlineAdapter())
    # So that a response that was lost is asked for again within the time for a token.
    transport = RequestsTransport(session=session, read_timeout=5)
    options: dict[str, Any] = {"retry_total": 2, "raw_response_hook": hook}
    return ManagedIdentityCredential(client_id=client_id, transport=transport, **options)


class _Source:
    """A credential of the SDK, and the last response of its endpoint: the SDK's own error omits most of it."""

    def __init__(self, build: Callable[[ResponseHook], TokenCredential]) -> None:
        self._responded = ""
        self._credential = build(self._note)

    def ask(self, scope: str, now: Callable[[], float]) -> _Token | TokenUnavailable:
        self._responded = ""
        try:
            token = self._credential.get_token(scope)
        except Exception as error:  # noqa: BLE001 - the SDK raises anything for a response that is not a token
            return TokenUnavailable(self._why(scope, error))
        value: object = token.token
        if not (isinstance(value, str) and _TOKEN.fullmatch(value)):
            return TokenUnavailable(f"The identity gave a token for {scope} that no header can hold.")
        fetched_at = now()
        return _Token(value, token.expires_on, fetched_at + (token.expires_on - fetched_at) / 2)

    def _note(self, response: PipelineResponse[Any, Any]) -> None:
        http = response.http_response
        self._responded = _responded(http.status_code, http.body())

    def _why(self, scope: str, error: Exception) -> str:
        if isinstance(self._credential, AzureCliCredential):
            return f"Run az login: the Azure CLI gave no token for {scope} ({_one_line(error)})."
        if self._responded:
            return f"The identity gave no token for {scope}: its endpoint responded {self._responded}."
        return f"The identity gave no token for {scope}: {_innermost(error)}"


def _responded(status: int, body: bytes) -> str:
    """Return status and message of a response; of a body without a message only its kind: it may hold a token."""
    text = body.decode(errors="replace").strip()
    if not text:
        return f"{status} with an empty body"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return f"{status} with a body that is not JSON"
    message = _message(document)
    if status < requests.codes.bad_request or not message:
        return f"{status} without a token that can be used"
    return f"{status}: {message}"


def _message(document: object) -> str | None:
    """Return the message: App Service has one, others follow OAuth 2 or nest it."""
    if not isinstance(document, dict):
        return None
    for name in ("message", "error_description", "error"):
        value = document.get(name)
        if isinstance(value, dict):
            value = value.get("message")
        if isinstance(value, str) and value:
            return _one_line(value).removesuffix(".")
    return None


def _innermost(error: BaseException) -> str:
    # The SDK reports a failing endpoint as "no identity found"; the innermost cause says what happened.
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(text: object) -> str:
    return one_line(str(text).strip().partition("\n")[0], _MAX_TEXT)
