"""Calculates the amounts of an opportunity, a quote, an order or an invoice: lines, discounts, freight and tax.

This is the system's own price calculation. Its rounding (half to even, each amount separately) is not confirmed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

from sandbox.dataverse.columns import Row
from sandbox.dataverse.sales_tables import REQUIRED_PART

_ZERO: Final = Decimal(0)
_DETAIL_ERROR, _NO_PRICE_LIST, _NO_QUANTITY, _NO_UNIT_PRICE = 1, 2, 4, 5


@dataclass(frozen=True)
class Pricing:
    """How amounts are calculated: the currency's decimal places, and whether a line's discount is per unit."""

    digits: int
    discount_per_unit: bool = False

    def line(self, line: Row) -> Row:
        """Return a line's calculated columns, and its entered amounts, rounded to the currency's decimal places."""
        typed = {name: self.rounded(line[name]) for name in ("manualdiscountamount", "tax") if line.get(name)}
        line = {**line, **typed}
        price, quantity = line.get("priceperunit"), line.get("quantity")
        net_price = (price or _ZERO) - _amount(line, "volumediscountamount")
        base = self.rounded(net_price * (quantity or _ZERO))
        error = _NO_QUANTITY if quantity is None else _NO_UNIT_PRICE if price is None else 0
        return {
            **typed,
            "baseamount": base,
            "extendedamount": base - self._discount(line) + _amount(line, "tax"),
            # The price of a bundle includes its required parts.
            "pricingerrorcode": 0 if line["producttypecode"] == REQUIRED_PART else error,
        }

    def totals(self, header: Row, lines: Iterable[Row]) -> Row:
        """Return a header's calculated columns from its calculated lines."""
        priced = [line for line in lines if line["producttypecode"] != REQUIRED_PART]
        tax = _sum(priced, "tax")
        items = _sum(priced, "extendedamount") - tax
        line_discount = sum((self._discount(line) for line in priced), _ZERO)
        percentage = _amount(header, "discountpercentage") / 100
        discount = self.rounded(_amount(header, "discountamount") + items * percentage)
        return {
            "totallineitemamount": items,
            "totallineitemdiscountamount": line_discount,
            "totaldiscountamount": discount + line_discount,
            "totalamountlessfreight": items - discount,
            "totaltax": tax,
            "totalamount": items - discount + _amount(header, "freightamount") + tax,
            "pricingerrorcode": _error(header, priced),
        }

    def rounded(self, amount: Decimal) -> Decimal:
        """Round to the currency's decimal places."""
        return amount.quantize(Decimal(1).scaleb(-self.digits), ROUND_HALF_EVEN)

    def _discount(self, line: Row) -> Decimal:
        discount = _amount(line, "manualdiscountamount")
        return self.rounded(discount * _amount(line, "quantity")) if self.discount_per_unit else discount


def _error(header: Row, lines: Iterable[Row]) -> int:
    if not header["pricelevelid"]:
        return _NO_PRICE_LIST
    return _DETAIL_ERROR if any(line["pricingerrorcode"] for line in lines) else 0


def _amount(row: Row, name: str) -> Decimal:
    return row.get(name) or _ZERO


def _sum(rows: Iterable[Row], name: str) -> Decimal:
    return sum((_amount(row, name) for row in rows), _ZERO)
