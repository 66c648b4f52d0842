"""What Dataverse and plug-ins respond, and what the function must decide: the documented errors, written down again.

The list is independent of the deployed code: an entry that is missing or wrong there is found by the histories.
"""

from __future__ import annotations

from dataclasses import dataclass

# What a plug-in may choose as its status (PluginHttpStatusCode), except 429: that is throttling of its record.
PLUG_IN_STATUSES = (400, 401, 403, 404, 405, 408, 409, 410, 412, 413, 417, 424, 500, 502, 503, 504)


@dataclass(frozen=True)
class ErrorResponse:
    """An error of Dataverse. `reason`: with which a message is parked; `is_outage`: after the outage policy's time."""

    status: int
    code: str
    text: str
    reason: str = "InvoiceRefused"
    is_outage: bool = False


def _refusals(codes: str, text: str, status: int = 400) -> list[ErrorResponse]:
    return [ErrorResponse(status, f"0x{code}", text) for code in codes.split()]


def _outages(codes: str, text: str, reason: str, status: int) -> list[ErrorResponse]:
    return [ErrorResponse(status, f"0x{code}", text, reason, is_outage=True) for code in codes.split()]


_CREDIT = "The credit limit of the account is exceeded."
_BACKEND = "The tax service is not available."
REFUSALS = (
    *(ErrorResponse(status, "0x80040265", _CREDIT) for status in PLUG_IN_STATUSES),
    *(
        ErrorResponse(status, f"0x80048d{suffix}", _CREDIT)
        for suffix, status in (
            ("02", 404), ("05", 401), ("06", 403), ("08", 409), ("09", 412),
            ("0b", 400), ("0c", 405), ("0d", 410), ("0e", 424), ("11", 413),
        )
    ),
    *(ErrorResponse(status, "", _CREDIT) for status in (400, 405, 409, 410, 412, 413, 417, 422, 424)),
    *_refusals("80040224 80048550 8009000C 80040251", "The plug-in raised NullReferenceException.", 500),
    *_refusals("80100010", "A price list is mandatory."),
    *_refusals("80048cea 80048ced 80048cfb 80048cfc", "The currency does not match."),
    *_refusals("8004022d 80040517", "The customer is inactive."),
    *_refusals("80043b24 80043b1b 80043b16", "The product has no unit."),
    *_refusals("80040333", "A duplicate was detected.", 412),
)  # fmt: skip
OUTAGES = (
    *(
        ErrorResponse(status, f"0x80048d{suffix}", _BACKEND, "DataverseUnavailable", is_outage=True)
        for suffix, status in (("03", 503), ("07", 408), ("0a", 500), ("0f", 502), ("10", 504))
    ),
    *_outages("80044151 80073000 8004A001 80048554 80044339", "SQL timeout expired.", "DataverseUnavailable", 500),
    *_outages("80048543 80048542 80040255", "A solution is being imported.", "DataverseUnavailable", 503),
    *_outages("80044150", "Generic SQL error.", "DataverseUnavailable", 500),
    *_outages(
        "8004418d 8004418e 80044171 80044172 80044173 80044174 80081111 80081116",
        "The sandbox worker crashed.", "DataverseUnavailable", 500,
    ),
    *_outages("80044190 80044191", "The plug-in assembly cannot be loaded.", "DataverseUnavailable", 400),
    *_outages("80040216", "An unexpected error occurred.", "DataverseUnavailable", 400),
    *_outages("8004A104 8004A107 8004A113", "The organization is disabled.", "DataverseUnavailable", 403),
    *_outages(
        "80040220 80040231 80048306 80040299 80042f09",
        "Principal user is missing prvCreateInvoice.", "DataverseForbidden", 403,
    ),
    *_outages("80050304", "The licence of the user has expired.", "DataverseForbidden", 400),
)  # fmt: skip
# What the function itself does wrong: parked at once.
REJECTIONS = (
    ErrorResponse(400, "0x80044331", "A value exceeds the length.", "RequestRejected"),
    ErrorResponse(400, "0x80048d19", "The payload is invalid.", "RequestRejected"),
)
