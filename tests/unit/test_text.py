from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.text import encodable, one_line


def test_white_space_and_line_breaks_become_one_space() -> None:
    assert one_line(" a\r\n\tb\u2028c \u00a0 d ") == "a b c d"


def test_what_does_not_print_is_replaced() -> None:
    assert one_line("a\x1b[31m\ud800\u202eb\x00") == "a\ufffd[31m\ufffd\ufffdb\ufffd"


def test_a_line_is_cut() -> None:
    assert one_line("x" * 5_000) == "x" * 1_000
    assert one_line("xy", 1) == "x"


def test_no_more_than_four_times_the_length_is_read() -> None:
    """A text of megabytes takes no time, even if white space is all of it."""
    assert one_line(" " * 39 + "xy", 10) == "x"
    assert one_line(" " * 40 + "xy", 10) == ""


def test_lone_surrogates_are_replaced_and_pairs_are_kept() -> None:
    assert encodable("a\ud800b\U0001f600\udfff") == "a\ufffdb\U0001f600\ufffd"


@given(st.text(st.characters()), st.integers(1, 50))
def test_any_text_becomes_one_line_that_can_be_encoded(text: str, length: int) -> None:
    line = one_line(text, length)
    assert len(line) <= length
    assert line.isprintable()
    assert (line + encodable(text)).encode() is not None
