"""Everything that the function does: from a won opportunity to exactly one invoice and its event."""
