"""What `doctor` makes of an error of Dataverse."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from operations.diagnosis.dataverse import error_code
from shared.errors import InvoicingFailure
from shared.response import Response


def error_of(status: int, body: bytes) -> InvoicingFailure:
    with pytest.raises(InvoicingFailure) as caught:
        Response(status, {}, body, "request", datetime.now(UTC)).raise_for_status()
    return caught.value


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("0x80040265", "The plug-in was aborted: 0x80040237: Cannot insert duplicate key."),
        ("0x80040220", "Dataverse responded 403 0x80040225: no"),
        ("0x80060892", "A record with these values exists."),
    ],
)
@pytest.mark.parametrize("status", [400, 401, 403, 412, 429, 500])
def test_the_code_of_an_error_is_none_that_its_text_quotes(status: int, code: str, text: str) -> None:
    body = json.dumps({"error": {"code": code, "message": text}}).encode()
    assert error_code(error_of(status, body)) == code


def test_an_error_of_something_in_front_of_dataverse_has_no_code() -> None:
    assert error_code(error_of(502, b"<html>0x80040237</html>")) == ""
