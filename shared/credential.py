"""Who the function is: a managed identity in Azure, a developer's Azure CLI login elsewhere; and a token in time.

The SDK's own time-outs do not hold (a hung endpoint blocks it for minutes), so the wait for a token has a bound here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from azure.core.exceptions import AzureError
from azure.identity import AzureCliCredential, ManagedIdentityCredential

from shared.errors import TokenUnavailable
from shared.owner import Care, NotAnswered, Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from azure.core.credentials import TokenCredential

    from shared.clock import Deadline

# An endpoint on the same machine answers in milliseconds; a token that takes longer than this is an outage.
_TOKEN_LIMIT = 20.0


def build_credential(environment: Mapping[str, str], client_id: str | None) -> TokenCredential:
    """Return the credential for where the code runs: `IDENTITY_ENDPOINT` is set wherever there is an identity.

    `client_id` names the user-assigned identity; None means the system-assigned one.
    """
    if "IDENTITY_ENDPOINT" not in environment:
        return AzureCliCredential(process_timeout=15)
    bounds: dict[str, Any] = {
        "connection_timeout": 3,
        "read_timeout": 5,
        "retry_total": 2,
        "retry_backoff_max": 2,
    }
    return ManagedIdentityCredential(client_id=client_id, **bounds)


class TokenSource:
    """Gives access tokens for one scope, cached by the SDK until shortly before they expire."""

    def __init__(self, scope: str, build: Callable[[], TokenCredential]) -> None:
        self._scope = scope
        # Built anew after a hang: the stuck one holds its own lock. It keeps no connection worth closing.
        self._owner = Owner("token", Care(build=build, close=lambda _: None, idle=24 * 60 * 60.0))

    def token(self, deadline: Deadline) -> str:
        """Return an access token; raises TokenUnavailable, with the SDK's reason but never a token."""
        try:
            return self._owner.call(
                lambda credential: credential.get_token(self._scope).token,
                limit=_TOKEN_LIMIT,
                timeout=min(deadline.remaining, _TOKEN_LIMIT),
            )
        except NotAnswered as error:
            raise TokenUnavailable(f"The identity gave no token for {self._scope} in time.") from error
        except AzureError as error:
            raise TokenUnavailable(
                f"The identity gave no token for {self._scope}: {_innermost(error)}"
            ) from error
        except Exception as error:
            # The SDK lets out whatever it stumbles over in an answer that is none, such as a proxy's page. Only the
            # kind is told: the text may quote the answer.
            raise TokenUnavailable(
                f"The identity gave no token for {self._scope}: {type(error).__name__} in its answer."
            ) from error


def _innermost(error: BaseException) -> str:
    # The SDK reports a failing endpoint as "no identity found"; what it met is the innermost cause.
    while error.__cause__ is not None:
        error = error.__cause__
    first_line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first_line[:300]}"
