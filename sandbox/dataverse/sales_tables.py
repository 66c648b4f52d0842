"""The tables of Dynamics 365 Sales, and this organization's own columns and tables (`new_…`)."""

from collections.abc import Mapping
from typing import Final

from sandbox.dataverse.columns import Column, ColumnKind, Lookup
from sandbox.dataverse.declaring import (
    ACTIVE,
    choice,
    lookup,
    money,
    plain,
    polymorphic,
    states,
    table,
    text,
)

PRODUCT, BUNDLE, REQUIRED_PART, OPTIONAL_PART, PROJECT_SERVICE = 1, 2, 3, 4, 5

_PRICING_ERRORS: Final = {
    0: "None", 1: "Detail Error", 2: "Missing Price Level", 3: "Inactive Price Level", 4: "Missing Quantity",
    5: "Missing Unit Price", 6: "Missing Product", 7: "Invalid Product", 8: "Missing Pricing Code",
}  # fmt: skip
_CURRENCY: Final = [
    *lookup("transactioncurrencyid", "transactioncurrency"),
    *plain(ColumnKind.DECIMAL, "exchangerate", writable=False),
]
_TOTALS: Final = money(
    "totalamount totalamountlessfreight totaldiscountamount totallineitemamount totallineitemdiscountamount "
    "totaltax",
    writable=False,
)
_TERMS: Final = [
    *money("discountamount freightamount"),
    *plain(ColumnKind.DECIMAL, "discountpercentage"),
    *choice("pricingerrorcode", _PRICING_ERRORS, 0),
    *lookup("pricelevelid", "pricelevel"),
    *_CURRENCY,
]
_PAYMENT: Final = choice("paymenttermscode", {1: "Net 30", 2: "2% 10, Net 30", 3: "Net 45", 4: "Net 60"})
_ADDRESS: Final = (
    *("name", "line1", "line2", "line3", "city", "stateorprovince", "postalcode", "country"),
    *("telephone", "fax"),
)
_ADDRESSES: Final = text(" ".join(f"{use}_{part}" for use in ("billto", "shipto") for part in _ADDRESS))
_LINE: Final = [
    *text("productdescription description"),
    *text("productname", writable=False),
    *money("priceperunit manualdiscountamount tax"),
    *money("volumediscountamount baseamount extendedamount", writable=False),
    *plain(ColumnKind.DECIMAL, "quantity"),
    *plain(ColumnKind.INTEGER, "lineitemnumber sequencenumber"),
    *plain(ColumnKind.BOOLEAN, "isproductoverridden ispriceoverridden", default=False),
    *choice(
        "producttypecode",
        {
            PRODUCT: "Product",
            BUNDLE: "Bundle",
            REQUIRED_PART: "Required Bundle Product",
            OPTIONAL_PART: "Optional Bundle Product",
            PROJECT_SERVICE: "Project-based Service",
        },
        PRODUCT,
    ),
    *choice("pricingerrorcode", _PRICING_ERRORS, 0),
    *plain(ColumnKind.ID, "parentbundleid productassociationid"),
    *lookup("productid", "product"),
    *lookup("uomid", "uom"),
    *_CURRENCY,
]
# Columns that an administrator of this organization added, so that clients can be tested with such columns.
_CUSTOM: Final = [
    *text("new_costcenter"),
    *money("new_commission"),
    *choice("new_channel", {100000000: "Direct", 100000001: "Partner", 100000002: "Web"}),
    *plain(ColumnKind.DATE, "new_handoverdate"),
    *plain(ColumnKind.DATETIME, "new_approvedon"),
    *plain(ColumnKind.BOOLEAN, "new_isrenewal", default=False),
    *plain(ColumnKind.INTEGER, "new_warrantymonths"),
    Column("new_project", ColumnKind.LOOKUP, lookup=Lookup({"new_project": "new_Project"})),
]
CUSTOM_COLUMNS: Final = tuple(column.name for column in _CUSTOM)
TOTALS: Final = tuple(column.name for column in _TOTALS)
LINE_COLUMNS: Final = tuple(column.name for column in _LINE)


def _customer(collections: str) -> list[Column]:
    return polymorphic(
        "customerid",
        "account contact",
        {"account": f"{collections}_accounts", "contact": f"{collections}_contacts"},
    )


_CLOSED_ACTIVITY: Mapping[int, tuple[str, Mapping[int, str]]] = {
    1: ("Completed", {2: "Completed"}),
    0: ("Open", {1: "Open"}),
    2: ("Canceled", {3: "Canceled"}),
}

SALES: Final = (
    table(
        "opportunity", "opportunities",
        text("name description emailaddress stepname"),
        money("estimatedvalue actualvalue budgetamount"), _TOTALS, _TERMS,
        plain(ColumnKind.DATE, "estimatedclosedate actualclosedate"),
        plain(ColumnKind.INTEGER, "closeprobability"),
        plain(ColumnKind.BOOLEAN, "isrevenuesystemcalculated", default=True),
        _customer("opportunity_customer"),
        lookup("parentaccountid", "account"), lookup("parentcontactid", "contact"), _CUSTOM,
        states({
            0: ("Open", {1: "In Progress", 2: "On Hold"}),
            1: ("Won", {3: "Won"}),
            2: ("Lost", {4: "Canceled", 5: "Out-Sold"}),
        }),
        privilege="Opportunity", code=3, owned=True,
    ),
    table(
        "opportunityproduct", "opportunityproducts", _LINE, lookup("parentbundleidref", "opportunityproduct"),
        lookup("opportunityid", "opportunity", "product_opportunities", "cascade"),
        privilege="Opportunity", code=1083, owner_of="opportunityid", primary_name="productname",
    ),
    table(
        "opportunityclose", "opportunitycloses",
        text("subject description"), money("actualrevenue"), plain(ColumnKind.DATE, "actualend"),
        # 1 won, 2 lost: the opportunity's state, repeated in a choice of the activity.
        choice("opportunitystatecode", {0: "Open", 1: "Won", 2: "Lost"}),
        choice("opportunitystatuscode", {1: "In Progress", 2: "On Hold", 3: "Won", 4: "Canceled", 5: "Out-Sold"}),
        lookup("opportunityid", "opportunity", "opportunity_OpportunityClose", "cascade"),
        _CURRENCY, states(_CLOSED_ACTIVITY),
        privilege="Activity", code=4208, owned=True, key="activityid", primary_name="subject",
    ),
    table(
        "quote", "quotes",
        text("name quotenumber description"), _TOTALS, _TERMS, _ADDRESSES, _PAYMENT, _customer("quote_customer"),
        lookup("opportunityid", "opportunity", "opportunity_quotes"),
        states({
            0: ("Draft", {1: "In Progress"}),
            1: ("Active", {2: "In Progress", 3: "Open"}),
            2: ("Won", {4: "Won"}),
            3: ("Closed", {5: "Lost", 6: "Canceled", 7: "Revised"}),
        }),
        privilege="Quote", code=1084, owned=True,
    ),
    table(
        "quotedetail", "quotedetails", _LINE, lookup("parentbundleidref", "quotedetail"),
        lookup("quoteid", "quote", "quote_details", "cascade"),
        privilege="Quote", code=1085, owner_of="quoteid", primary_name="productname",
    ),
    table(
        "salesorder", "salesorders",
        text("name ordernumber description"), _TOTALS, _TERMS, _ADDRESSES, _PAYMENT, _customer("order_customer"),
        plain(ColumnKind.DATE, "datefulfilled requestdeliveryby"),
        lookup("opportunityid", "opportunity", "opportunity_sales_orders"),
        lookup("quoteid", "quote", "quote_orders"),
        states({
            0: ("Active", {1: "New", 2: "Pending"}),
            1: ("Submitted", {3: "In Progress"}),
            2: ("Canceled", {4: "No Money"}),
            3: ("Fulfilled", {100001: "Complete", 100002: "Partial"}),
            4: ("Invoiced", {100003: "Invoiced"}),
        }),
        privilege="SalesOrder", code=1088, owned=True,
    ),
    table(
        "salesorderdetail", "salesorderdetails", _LINE, lookup("parentbundleidref", "salesorderdetail"),
        lookup("salesorderid", "salesorder", "order_details", "cascade"),
        privilege="SalesOrder", code=1089, owner_of="salesorderid", primary_name="productname",
    ),
    table(
        "orderclose", "ordercloses",
        text("subject description ordernumber"), plain(ColumnKind.DATE, "actualend"),
        lookup("salesorderid", "salesorder", "SalesOrder_OrderClose", "cascade"), states(_CLOSED_ACTIVITY),
        privilege="Activity", code=4209, owned=True, key="activityid", primary_name="subject",
    ),
    table(
        "invoice", "invoices",
        text("name invoicenumber description emailaddress"), _TOTALS, _TERMS, _ADDRESSES, _PAYMENT,
        _customer("invoice_customer"),
        [Column(f"{name}id", ColumnKind.LOOKUP, writable=False, lookup=Lookup({name: f"{name}id"}))
         for name in ("account", "contact")],
        plain(ColumnKind.DATE, "duedate"), plain(ColumnKind.DATETIME, "datedelivered lastbackofficesubmit"),
        plain(ColumnKind.BOOLEAN, "ispricelocked", default=False),
        # Marks that the totals are calculated when the invoice is next retrieved by its id. Callers cannot see it.
        [Column("_totalspending", ColumnKind.BOOLEAN, writable=False, secret=True, default=False)],
        lookup("opportunityid", "opportunity", "opportunity_invoices", "restrict"),
        lookup("salesorderid", "salesorder", "order_invoices"), _CUSTOM,
        states({
            0: ("Active", {1: "New", 2: "Partially Shipped", 4: "Billed", 5: "Booked (applies to services)",
                           6: "Installed (applies to services)"}),
            1: ("Closed (deprecated)", {3: "Canceled (deprecated)", 7: "Paid in Full (deprecated)"}),
            2: ("Paid", {100001: "Complete", 100002: "Partial"}),
            3: ("Canceled", {100003: "Canceled"}),
        }),
        privilege="Invoice", code=1090, owned=True,
    ),
    table(
        "invoicedetail", "invoicedetails", _LINE, lookup("parentbundleidref", "invoicedetail"),
        lookup("invoiceid", "invoice", "invoice_details", "cascade"),
        lookup("salesorderdetailid", "salesorderdetail"),
        privilege="Invoice", code=1091, owner_of="invoiceid", primary_name="productname",
    ),
    table(
        "account", "accounts",
        text("name accountnumber emailaddress1 telephone1 websiteurl description "
             "address1_line1 address1_line2 address1_city address1_postalcode address1_country"),
        money("revenue"), plain(ColumnKind.INTEGER, "numberofemployees"),
        lookup("primarycontactid", "contact"), lookup("transactioncurrencyid", "transactioncurrency"), ACTIVE,
        privilege="Account", code=1, owned=True,
    ),
    table(
        "contact", "contacts",
        text("fullname firstname lastname emailaddress1 telephone1 externaluseridentifier "
             "address1_line1 address1_line2 address1_city address1_postalcode address1_country"),
        polymorphic("parentcustomerid", "account", {"account": "contact_customer_accounts"}),
        lookup("transactioncurrencyid", "transactioncurrency"), ACTIVE,
        privilege="Contact", code=2, owned=True, primary_name="fullname",
    ),
    table(
        "transactioncurrency", "transactioncurrencies",
        text("currencyname isocurrencycode currencysymbol"), plain(ColumnKind.INTEGER, "currencyprecision"),
        plain(ColumnKind.DECIMAL, "exchangerate"), ACTIVE,
        privilege="TransactionCurrency", code=9105, primary_name="currencyname",
    ),
    # The privileges on products also apply to price lists and units.
    table(
        "pricelevel", "pricelevels",
        text("name description"), lookup("transactioncurrencyid", "transactioncurrency"), ACTIVE,
        privilege="Product", code=1022,
    ),
    table(
        "uomschedule", "uomschedules", text("name description baseuomname"), ACTIVE,
        privilege="Product", code=1056,
    ),
    table(
        "uom", "uoms",
        text("name"), plain(ColumnKind.DECIMAL, "quantity"),
        plain(ColumnKind.BOOLEAN, "isschedulebaseuom", default=False),
        lookup("uomscheduleid", "uomschedule", "unit_of_measurement_schedule"), lookup("baseuom", "uom"),
        privilege="Product", code=1055,
    ),
    table(
        "product", "products",
        text("name productnumber description"), money("price"), plain(ColumnKind.INTEGER, "quantitydecimal", default=2),
        choice("productstructure", {1: "Product", 2: "Product Family", 3: "Product Bundle"}, 1),
        lookup("pricelevelid", "pricelevel"), lookup("defaultuomid", "uom"),
        lookup("defaultuomscheduleid", "uomschedule"),
        lookup("transactioncurrencyid", "transactioncurrency"), ACTIVE,
        privilege="Product", code=1024,
    ),
    table(
        "annotation", "annotations",
        text("subject notetext objecttypecode filename mimetype documentbody"),
        plain(ColumnKind.BOOLEAN, "isdocument", default=False),
        polymorphic(
            "objectid", "opportunity account contact quote salesorder invoice",
            {"opportunity": "Opportunity_Annotation", "account": "Account_Annotation",
             "contact": "Contact_Annotation", "quote": "Quote_Annotation",
             "salesorder": "SalesOrder_Annotation", "invoice": "Invoice_Annotation"},
            "cascade",
        ),
        privilege="Note", code=5, owned=True, primary_name="subject",
    ),
    table(
        "new_project", "new_projects", text("new_name new_number"), ACTIVE,
        privilege="new_Project", code=10001, owned=True, primary_name="new_name",
    ),
)  # fmt: skip
