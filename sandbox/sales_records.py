"""What Dataverse's database has of opportunities and invoices, with the names of what the rows refer to."""

from collections import defaultdict

from sandbox.dataverse.columns import Row
from sandbox.dataverse.database import Transaction
from sandbox.dataverse.schema import TABLES


class SalesRecords:
    """The rows of one moment: `opportunities` by id, the oldest first, and the `invoices` of each."""

    def __init__(self, transaction: Transaction) -> None:
        opportunities = transaction.rows(TABLES["opportunity"], tail="ORDER BY t.createdon, t.name")
        self.opportunities = {str(row["opportunityid"]): row for row in opportunities}
        self.invoices: defaultdict[str, list[Row]] = defaultdict(list)
        for row in transaction.rows(TABLES["invoice"]):
            self.invoices[str(row["opportunityid"])].append(row)
        self._customers = {
            row[TABLES[table].key]: (table, str(row[column]))
            for table, column in (("account", "name"), ("contact", "fullname"))
            for row in transaction.rows(TABLES[table])
        }
        self._currencies = {
            row["transactioncurrencyid"]: (str(row["isocurrencycode"]), int(row["currencyprecision"]))
            for row in transaction.rows(TABLES["transactioncurrency"])
        }

    def customer(self, row: Row) -> tuple[str, str]:
        """Return the table and the name of the customer of an opportunity or invoice."""
        return self._customers.get(row["customerid"], ("", ""))

    def total(self, row: Row) -> tuple[str | None, str]:
        """Return the total amount of an opportunity or invoice, with its currency's digits, and the currency's code."""
        code, precision = self._currencies.get(row["transactioncurrencyid"], ("", 2))
        amount = row["totalamount"]
        return None if amount is None else f"{amount:.{precision}f}", code
