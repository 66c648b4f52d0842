from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from shared.errors import (
    DataverseForbidden,
    DataverseNotFound,
    DataverseThrottled,
    DataverseUnauthorized,
    DataverseUnavailable,
    InvoiceRefused,
    InvoicingFailure,
    RecordNotFound,
    RequestRejected,
)
from shared.response import Response, bounded

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
# What a plug-in may choose: Microsoft's PluginHttpStatusCode.
PLUG_IN_STATUSES = (400, 401, 403, 404, 405, 408, 409, 410, 412, 413, 417, 424, 429, 500, 502, 503, 504)


def response_with(status: int, body: bytes = b"", **headers: str) -> Response:
    return Response(
        status, {name.replace("_", "-"): text for name, text in headers.items()}, body, "r-1", NOON
    )


def failed(
    status: int,
    code: object = "",
    message: object = "",
    annotations: dict[str, object] | None = None,
    **headers: str,
) -> Response:
    error = {"code": code, "message": message, **(annotations or {})}
    return response_with(status, json.dumps({"error": error}).encode(), **headers)


def decision(response: Response) -> InvoicingFailure:
    with pytest.raises(InvoicingFailure) as raised:
        response.raise_for_status()
    assert raised.value.request_id == "r-1"
    return raised.value


# ---------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("status", "body", "value"),
    [
        (204, b"", {}),
        (200, b" \r\n", {}),
        (201, b'{"a": 1250}', {"a": 1250}),
        (200, b'\xef\xbb\xbf{"a": "\xc3\xa4"}', {"a": "ä"}),
    ],
    ids=["no body", "white space", "whole number", "byte order mark"],
)
def test_a_success_has_a_json_object_or_no_body(status: int, body: bytes, value: dict[str, object]) -> None:
    assert response_with(status, body).json() == value


@pytest.mark.parametrize(
    ("status", "succeeded", "has_failed"),
    [
        (199, False, False),
        (200, True, False),
        (299, True, False),
        (300, False, False),
        (399, False, False),
        (400, False, True),
        (599, False, True),
        (600, False, False),
    ],
)
def test_the_class_of_a_status_has_bounds(status: int, *, succeeded: bool, has_failed: bool) -> None:
    assert (response_with(status).succeeded, response_with(status).failed) == (succeeded, has_failed)


def test_the_body_of_an_error_is_not_read_as_a_value() -> None:
    with pytest.raises(DataverseUnavailable, match="Dataverse responded 500"):
        response_with(500, b'{"value": []}').json()


@pytest.mark.parametrize(
    "digits", ["1250.40", "0.1", "-0.005", "922337203685477.5807", "1e-10", "1.2345678901234567890"]
)
def test_money_is_exact(digits: str) -> None:
    value = response_with(200, b'{"totalamount": %s}' % digits.encode()).json()["totalamount"]
    assert isinstance(value, Decimal)
    assert value == Decimal(digits)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[1]",
        b"1",
        b"null",
        b'{"a": ',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": "\xff"}',
        b'{"a":' * 100_000,
        '{"a": 1}'.encode("utf-16"),
    ],
    ids=range(10),
)
def test_a_success_that_is_no_json_object_comes_from_another_server(body: bytes) -> None:
    with pytest.raises(
        DataverseUnavailable, match="A response with status 200 is not Dataverse's JSON"
    ) as raised:
        response_with(200, body).json()
    assert raised.value.request_id == "r-1"


@pytest.mark.parametrize(
    "number", [b"1E99999999999999999999", b"-1E99999999999999999999", b"9" * 5_000, b"0." + b"1" * 5_000]
)
def test_a_number_that_no_column_can_hold_harms_nothing_but_itself(number: bytes) -> None:
    document = response_with(200, b'{"a": %s, "b": 1}' % number).json()
    assert math.isnan(document["a"])
    assert document["b"] == 1


@pytest.mark.parametrize("digits", ["1" * 100, "0." + "1" * 98])
def test_a_number_of_a_hundred_characters_is_still_read(digits: str) -> None:
    assert response_with(200, b'{"a": %s}' % digits.encode()).json()["a"] == Decimal(digits)
    assert math.isnan(response_with(200, b'{"a": %s1}' % digits.encode()).json()["a"])


@pytest.mark.parametrize("body", [b'{"value": {}}', b'{"value": [1]}', b'{"value": [{}, 1]}', b"{}"])
def test_what_has_no_rows_is_no_response_to_a_query(body: bytes) -> None:
    with pytest.raises(DataverseUnavailable, match="no usable value:"):
        response_with(200, body).records()


def test_rows_remember_their_request() -> None:
    (row,) = response_with(200, b'{"value": [{"a": 1}]}').records()
    assert (row.integer("a"), row.request_id) == (1, "r-1")


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ("80040265", InvoiceRefused),
        (
            "80048d02 80048d05 80048d06 80048d08 80048d09 80048d0b 80048d0c 80048d0d 80048d0e 80048d11",
            InvoiceRefused,
        ),
        ("80048d03 80048d04 80048d07 80048d0a 80048d0f 80048d10", DataverseUnavailable),
        ("80040224 80048550 8009000C 80040251", InvoiceRefused),
        (
            "80100010 80048cea 80048ced 80048cfb 80048cfc 8004022d 80040517 80043b24 80043b1b 80043b16",
            InvoiceRefused,
        ),
        ("80040333", InvoiceRefused),
        ("80040217", RecordNotFound),
        ("80040237 80060892 80073002", DataverseUnavailable),
        ("80044331 80048d19", RequestRejected),
        ("80040220 80040231 80048306 80040299 80042f09 80050304", DataverseForbidden),
        ("80044151 80073000 8004A001 80048554 80044339 80048543 80048542 80040255", DataverseUnavailable),
        ("80044150 80040216", DataverseUnavailable),
        ("8004418d 8004418e 80044171 80044172 80044173 80044174 80081111 80081116", DataverseUnavailable),
        ("80044190 80044191 8004A104 8004A107 8004A113", DataverseUnavailable),
        ("80060888", DataverseNotFound),
    ],
)
def test_a_code_decides_with_any_status(codes: str, expected: type[InvoicingFailure]) -> None:
    for code in codes.split():
        for status in (*PLUG_IN_STATUSES, 422, 501):
            if status == 429:
                continue
            raised = decision(failed(status, f"0x{code}", "Why."))
            assert type(raised) is expected, (code, status)
            assert raised.description == f"Dataverse responded {status} 0x{code.lower()}: Why."


@pytest.mark.parametrize("code", ["0X80040265", "80040265", -2147220891, "-2147220891"])
def test_a_code_may_be_written_in_other_ways(code: object) -> None:
    raised = decision(failed(500, code, "No."))
    assert type(raised) is InvoiceRefused
    assert "0x80040265: No." in raised.description


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Principal user is missing prvReadInvoice privilege", DataverseForbidden),
        ("Read Privilege Check For Owner failed", DataverseForbidden),
        ("Invoice With Id = 0f8fad5b-d9cb-469f-a165-70867728950e Does Not Exist", RecordNotFound),
        ("Generic SQL error.", DataverseUnavailable),
        ("SQL timeout expired.", DataverseUnavailable),
        ("Transaction was deadlocked: deadlock victim", DataverseUnavailable),
        ("The organization is in administration mode.", DataverseUnavailable),
        ("The currency of the price list does not match the currency of the opportunity.", InvoiceRefused),
    ],
)
def test_without_a_known_code_the_text_decides(message: str, expected: type[InvoicingFailure]) -> None:
    for code in ("", None, "0x0", "0x80099999"):
        assert type(decision(failed(400, code, message))) is expected


@pytest.mark.parametrize(
    ("statuses", "with_text", "without"),
    [
        ((400, 405, 409, 410, 412, 413, 417, 422, 424), InvoiceRefused, DataverseUnavailable),
        ((401,), DataverseUnauthorized, DataverseUnauthorized),
        ((403,), DataverseForbidden, DataverseForbidden),
        ((404,), DataverseNotFound, DataverseNotFound),
        ((408, 500, 501, 502, 503, 504), DataverseUnavailable, DataverseUnavailable),
        ((199, 302, 304), DataverseUnavailable, DataverseUnavailable),
        ((429,), DataverseThrottled, DataverseThrottled),
    ],
)
def test_the_status_decides_last(
    statuses: tuple[int, ...], with_text: type[InvoicingFailure], without: type[InvoicingFailure]
) -> None:
    for status in statuses:
        assert type(decision(failed(status, "", "Why."))) is with_text
        assert type(decision(failed(status, "0x80099999", ""))) is with_text
        for body in (b"<html>", b"", b'{"error": "Why."}', b'{"error": {"code": "", "message": ""}}'):
            raised = decision(response_with(status, body))
            assert type(raised) is without
            assert raised.description.startswith(f"Dataverse responded {status}.")


@pytest.mark.parametrize("code", ["0x80072321", "0x80072322", "0x80072326"])
@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_exceeded_limits_are_known_by_their_code(code: str, status: int) -> None:
    response = failed(status, code, "Number of requests exceeded the limit.", retry_after="7")
    assert response.exceeds_limits
    raised = decision(response)
    assert isinstance(raised, DataverseThrottled)
    assert raised.retry_after == 7


@pytest.mark.parametrize("code", ["0x80040265", "0x80048d04", ""])
def test_the_429_of_a_plug_in_is_not_that_of_a_limit(code: str) -> None:
    response = failed(429, code, "The tax service is busy.")
    assert not response.exceeds_limits
    raised = decision(response)
    assert isinstance(raised, DataverseThrottled)
    assert raised.retry_after is None, "the back-off grows"


@pytest.mark.parametrize(
    ("plug_in", "said"),
    [("Contoso.CreditCheck\n, Version=1.0", "Contoso.CreditCheck , Version=1.0"), ("p" * 300, "p" * 200)],
)
def test_a_refusal_names_the_plug_in(plug_in: str, said: str) -> None:
    annotations: dict[str, object] = {
        "@Microsoft.PowerApps.CDS.ErrorDetails.ApiExceptionSourceKey": plug_in,
        "@Microsoft.PowerApps.CDS.TraceText": "secret",
    }
    raised = decision(failed(400, "0x80040265", "No.", annotations))
    assert raised.description == f"Dataverse responded 400 0x80040265: No. (plug-in {said})"


def test_of_an_error_only_its_own_text_is_kept_in_one_short_line() -> None:
    """The annotations beside it can hold personal data."""
    error = {
        "code": "0x80099999" + "0" * 1000,
        "message": "Refused:\r\n\tbecause\ud800\x1b[31m. " + "x" * 1000,
        "@Microsoft.PowerApps.CDS.TraceText": "secret",
        "innererror": {"message": "secret"},
    }
    said = decision(response_with(400, json.dumps({"error": error}).encode())).description
    assert said.startswith("Dataverse responded 400 0x80099999")
    assert ": Refused: because\ufffd\ufffd[31m. xxx" in said
    assert "secret" not in said
    assert said.isprintable()
    assert len(said) < 600
    assert said.encode()


@pytest.mark.parametrize(
    ("code", "message", "says"),
    [
        ("0x8009" + "9" * 100, "", " 0x8009" + "9" * 34 + ": "),
        ("", "x" * 600, ": " + "x" * 500),
        ("", "Why.", ": Why."),
        ("0x80099999", "", " 0x80099999: "),
    ],
)
def test_a_code_and_a_text_are_each_cut_and_each_suffice(code: str, message: str, says: str) -> None:
    assert decision(failed(500, code, message)).description == f"Dataverse responded 500{says}"


@pytest.mark.parametrize(
    "error",
    [None, "text", [], {}, {"code": None, "message": None}, {"code": 5, "message": {}}, {"code": True}],
)
def test_an_error_may_have_any_form(error: object) -> None:
    assert type(decision(response_with(500, json.dumps({"error": error}).encode()))) is DataverseUnavailable


# ---------------------------------------------------------------------------------------------- redirects, 403


@pytest.mark.parametrize(
    ("location", "says"),
    [
        (
            "https://contoso-new.crm4.dynamics.com/api/data/v9.2/$batch",
            (
                "It redirects to contoso-new.crm4.dynamics.com: if the environment's address has changed, set "
                "DATAVERSE_URL to the new one."
            ),
        ),
        (
            "https://login.microsoftonline.com/common/oauth2/authorize?client_id=secret",
            "It redirects to the sign-in page login.microsoftonline.com",
        ),
        ("https://contoso.com/adfs/ls?x=secret", "It redirects to the sign-in page contoso.com"),
        ("https://sts.contoso.com/?x=secret", "It redirects to the sign-in page sts.contoso.com"),
        ("/main.aspx?secret", "It redirects without naming a host"),
        ("", "It redirects without naming a host"),
        ("https://[::1?secret", "It redirects without naming a host"),
        (f"https://{'h' * 300}", f"It redirects to {'h' * 260}:"),
    ],
)
def test_a_redirect_names_the_host_of_its_target(location: str, says: str) -> None:
    raised = decision(response_with(302, location=location))
    assert type(raised) is DataverseUnavailable
    assert raised.description.startswith("Dataverse responded 302. ")
    assert says in raised.description
    assert "secret" not in raised.description


def test_only_the_statuses_of_redirects_are_explained_as_redirects() -> None:
    for status in (300, 399):
        assert "It redirects" in decision(response_with(status)).description
    for status in (199, 400):
        assert "redirects" not in decision(response_with(status)).description


def test_a_403_without_a_text_says_what_it_may_be() -> None:
    raised = decision(response_with(403))
    assert "administration mode" in raised.description
    assert "IP firewall" in raised.description
    for code, message in (("0x80042f09", "No roles."), ("0x80042f09", ""), ("", "No roles.")):
        assert "administration" not in decision(failed(403, code, message)).description


# ---------------------------------------------------------------------------------------------- Retry-After


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("7.5", 7.5),
        (" 7 ", 7),
        ("0.5", 0.5),
        ("3600", 3600),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30),
        ("Sun, 01 Mar 2026 13:00:30 +0100", 30),
        ("Sun, 01 Mar 2026 12:00:30", 30),
        ("inf", math.inf),
        ("9" * 5000, math.inf),
        ("", None),
        ("soon", None),
        ("0", None),
        ("-5", None),
        ("nan", None),
        ("Sun, 01 Mar 2026 11:00:00 GMT", None),
        ("Sun, 99 Mar 2026 11:00:00 GMT", None),
        ("Sun, 01 Mar 99999999999999999999 12:00:30 GMT", None),
        ("Sun, 01 Mar 2026 12:00:30 +99999999999999999999", None),
    ],
)
def test_a_time_to_wait_has_many_forms(header: str, seconds: float | None) -> None:
    assert response_with(429, retry_after=header).retry_after == seconds
    assert response_with(429).retry_after is None


@pytest.mark.parametrize(
    ("asked", "waits"), [(0.1, 1), (1, 1), (7.5, 7.5), (900, 900), (901, 900), (math.inf, 900)]
)
def test_a_time_to_wait_is_bounded(asked: float, waits: float) -> None:
    assert bounded(asked) == waits


def test_a_wait_that_is_shortened_says_so() -> None:
    raised = decision(response_with(429, retry_after="3600"))
    assert isinstance(raised, DataverseThrottled)
    assert raised.retry_after == 900
    assert raised.description.endswith("It asks to wait 3600 s; it is asked again after 900 s.")
    assert "asks" not in decision(response_with(429, retry_after="900")).description
