"""Text from outside, made safe for log lines, descriptions and JSON."""

from __future__ import annotations


def encodable(text: str) -> str:
    """Replace lone surrogates: JSON can hold them, UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def one_line(text: str, length: int = 1000) -> str:
    """Return one line of at most `length` characters without control characters, so that log lines cannot be forged.

    White space becomes a single space, any other character that does not print becomes U+FFFD.
    """
    line = " ".join(text[: 4 * length].split())[:length]
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line
    )
