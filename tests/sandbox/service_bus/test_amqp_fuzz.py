"""A short run of the fuzzer of frames; `make fuzz` runs it for longer."""

import pytest
from amqp_frames import fuzz


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_frames_break_the_server(seed: int) -> None:
    """Each connection that ends has stated why, and other clients send and receive as before."""
    ended = fuzz(frames=2000, seed=seed)
    assert ended["amqp:decode-error"] > 0
    assert ended["still open"] > 0
