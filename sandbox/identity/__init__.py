"""Managed identity: App Service's token endpoint, and the authority whose tokens the other servers verify."""

from sandbox.identity.server import API_VERSION, IdentityServer
from sandbox.identity.tokens import Claims, Identity, InvalidToken, TokenAuthority

__all__ = ["API_VERSION", "Claims", "Identity", "IdentityServer", "InvalidToken", "TokenAuthority"]
