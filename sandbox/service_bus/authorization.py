"""Who may do what: shared access signatures and identities' tokens, as `$cbs` takes them.

A client puts a token for a resource before it attaches a link there; the link is refused unless one of its
tokens gives the right that the link needs. Nothing here knows AMQP. Neither keys nor tokens appear in errors.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote_plus, urlsplit

from sandbox.clock import Clock, SystemClock
from sandbox.identity import Claims, InvalidToken
from sandbox.service_bus.configuration import Configuration, Right, RoleAssignment, SasRule
from sandbox.service_bus.errors import Unauthorized

AUDIENCES = ("https://servicebus.azure.net/",)
_SAS_PREFIX = "SharedAccessSignature "


VerifyToken = Callable[[str, Collection[str]], Claims]


@dataclass(frozen=True)
class Grant:
    """Rights on `scope` (an entity's path in lower case, or empty for the whole namespace) until a time."""

    scope: str
    rights: Right
    expires_at: datetime

    def covers(self, entity: str, right: Right, now: datetime) -> bool:
        """Return whether this permits one of `right` on an entity now."""
        return bool(right & self.rights) and self.expires_at > now and _is_within(entity.lower(), self.scope)


class Authenticator:
    """Turns tokens into grants.

    Shared access keys and role assignments come from the configuration; `role_assignments` adds those of
    identities that are known only when the sandbox starts. `verify_token` is called with a JWT and the accepted
    audiences, and raises InvalidToken; without it JWTs are refused.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        clock: Clock | None = None,
        verify_token: VerifyToken | None = None,
        role_assignments: Iterable[RoleAssignment] = (),
    ) -> None:
        self._rules = configuration.sas_rules
        self._roles = (*configuration.role_assignments, *role_assignments)
        self._clock: Clock = clock or SystemClock()
        self._verify_token = verify_token

    def assign(self, *assignments: RoleAssignment) -> None:
        """Add role assignments, as an administrator does while the namespace is in use."""
        self._roles = (*self._roles, *assignments)

    def put_token(self, kind: str, token: str, resource: str) -> list[Grant]:
        """Return what a token permits on `resource` (a URI); raise Unauthorized for one that is not good."""
        # The Python SDK sends its signatures as "jwt" where it keeps refreshing them: the content decides.
        if kind.endswith(":sastoken") or token.startswith(_SAS_PREFIX):
            return [self._shared_access(token, _path(resource))]
        if kind in ("jwt", "servicebus.windows.net:jwt"):
            return self._identity(token)
        raise Unauthorized(f"a token of type {kind!r} is not supported")

    def plain(self, key_name: str, key: str) -> list[Grant]:
        """Return what a key name and key permit that came as user name and password (SASL PLAIN)."""
        for rule in self._rules:
            if rule.name == key_name and any(_same(key, each) for each in rule.keys):
                return [Grant(rule.scope.lower(), rule.rights, datetime.max.replace(tzinfo=UTC))]
        raise Unauthorized("the key name or the key is wrong")

    def now(self) -> datetime:
        """Return the time by which grants expire."""
        return self._clock.now()

    def _shared_access(self, token: str, resource: str) -> Grant:
        fields = dict(part.partition("=")[::2] for part in token.removeprefix(_SAS_PREFIX).split("&"))
        scope, expiry = fields.get("sr", ""), fields.get("se", "")
        key_name, signature = (unquote_plus(fields.get(name, "")) for name in ("skn", "sig"))
        if not token.startswith(_SAS_PREFIX) or not scope or not expiry.isdigit():
            raise Unauthorized("the token is not a shared access signature with sr, sig, se and skn")
        path = _path(unquote_plus(scope))
        signed = f"{scope}\n{expiry}".encode()
        candidates = self._candidates(key_name, path)
        rule = next((each for each in candidates if _signs(each, signed, signature)), None)
        if rule is None:
            raise Unauthorized(
                f"InvalidSignature: the signature does not fit a key of {key_name!r} for {path or 'the namespace'}"
            )
        expires_at = datetime.fromtimestamp(min(int(expiry), 253402300799), UTC)
        if expires_at <= self._clock.now():
            raise Unauthorized(f"ExpiredToken: the token expired at {expires_at.isoformat()}")
        if not _is_within(resource, path):
            raise Unauthorized(f"the token is for {path!r}, not for {resource!r}")
        return Grant(path, rule.rights, expires_at)

    def _candidates(self, key_name: str, path: str) -> list[SasRule]:
        """Return the rules of that name that hold for a path: the entity's own before the namespace's."""
        rules = [
            rule for rule in self._rules if rule.name == key_name and _is_within(path, rule.scope.lower())
        ]
        return sorted(rules, key=lambda rule: len(rule.scope), reverse=True)

    def _identity(self, token: str) -> list[Grant]:
        if self._verify_token is None:
            raise Unauthorized("tokens of identities are not accepted here: no authority is configured")
        try:
            claims = self._verify_token(token, AUDIENCES)
        except InvalidToken as error:
            raise Unauthorized(f"InvalidToken: {error}") from error
        return [
            Grant(each.scope.lower(), each.role.rights, claims.expires_at)
            for each in self._roles
            if each.client_id.lower() == claims.client_id.lower()
        ]


class ClientRights:
    """What one client may do: the grants of all that it presented."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._grants: list[Grant] = []

    def put_key(self, key_name: str, key: str) -> None:
        """Take a key that came as user name and password; raise Unauthorized."""
        self._grants += self._authenticator.plain(key_name, key)

    def put_token(self, kind: str, token: str, resource: str) -> None:
        """Take a token; raise Unauthorized."""
        self._grants += self._authenticator.put_token(kind, token, resource)

    def require(self, path: str, right: Right) -> None:
        """Raise Unauthorized unless a grant that has not expired permits one of `right` on an entity."""
        now = self._authenticator.now()
        if not any(grant.covers(path, right, now) for grant in self._grants):
            names = " or ".join(str(each.name).capitalize() for each in Right if each & right)
            raise Unauthorized(
                f"Unauthorized access. '{names}' claim(s) are required to perform this operation. "
                f"Resource: '{path}'."
            )


def entity_path(address: str) -> str:
    """Return the path in a link address or a resource, which may be a whole URI."""
    return (urlsplit(address).path if "://" in address else address).strip("/")


def _path(resource: str) -> str:
    """Return the entity that a resource is about, in lower case: `$cbs`-less, `$management`-less."""
    return entity_path(resource).lower().removesuffix("/$management")


def _is_within(path: str, scope: str) -> bool:
    return not scope or path == scope or path.startswith(scope + "/")


def _signs(rule: SasRule, signed: bytes, signature: str) -> bool:
    digests = (hmac.new(key.encode(), signed, hashlib.sha256).digest() for key in rule.keys)
    return any(_same(base64.b64encode(digest).decode(), signature) for digest in digests)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
