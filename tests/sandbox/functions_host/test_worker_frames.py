import io

from sandbox.functions_host.worker import read_frame, write_frame


def test_frames_come_out_as_they_went_in() -> None:
    stream = io.BytesIO()
    for content in (b"", b"x", b"y" * 300_000):
        write_frame(stream, content)
    stream.seek(0)
    assert [read_frame(stream) for _ in range(4)] == [b"", b"x", b"y" * 300_000, None]


def test_a_cut_frame_is_the_end() -> None:
    stream = io.BytesIO()
    write_frame(stream, b"whole")
    assert read_frame(io.BytesIO(stream.getvalue()[:-1])) is None
    assert read_frame(io.BytesIO(stream.getvalue()[:2])) is None
