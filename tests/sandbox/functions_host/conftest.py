import socket

import pytest


@pytest.fixture
def free_loopback_address() -> str:
    """Return a loopback address on which port 5671 is free: with a token, clients use no other."""
    for last in range(2, 255):
        address = f"127.0.0.{last}"
        with socket.socket() as probe:
            try:
                probe.bind((address, 5671))
            except OSError:
                continue
            return address
    pytest.skip("no loopback address has port 5671 free")
