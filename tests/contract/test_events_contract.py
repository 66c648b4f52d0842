from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import yaml
from jsonschema import Draft202012Validator
from published_event import CONTRACTS, validate_event, validator
from repository import text

from shared.columns import ColumnType, ColumnValue
from shared.invoice import (
    Amounts,
    Currency,
    Customer,
    Invoice,
    Line,
    LineKind,
    PaymentTerms,
    Product,
)
from shared.invoice_created import DATA_SCHEMA, EVENT_TYPE, invoice_created
from shared.message import ATTEMPT, FIRST_SEEN, PARKED_PROPERTIES, ROOT
from shared.opportunity_won import OpportunityWon, compact_event, parse_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Schema = dict[str, Any]

PUBLISHED = Path(__file__).parent / "published"
SCHEMAS = sorted(path.name for path in CONTRACTS.glob("*.schema.json"))
INVOICE_EXAMPLES = sorted(
    path for path in (PUBLISHED / "invoice-created.v1").glob("*.json") if path.name not in SCHEMAS
)
# Published before the event had amounts and lines.
FIRST_EXAMPLES = [path for path in INVOICE_EXAMPLES if path.stem in ("bare", "full", "pricing-error")]
WON_EXAMPLES = sorted(
    path for path in (PUBLISHED / "opportunity-won.v1").glob("*.json") if path.name not in SCHEMAS
)
MAKE_A_V2 = (
    "{} breaks what was published as version 1, and with it the code that consumers and senders generated from it, "
    "or messages that are under way. Keep version 1 as it is and make a v2: a new type, a new dataschema, a folder "
    "of its own in tests/contract/published."
)


def read(path: Path) -> Schema:
    return cast("Schema", json.loads(path.read_bytes()))


def check(example: Schema) -> None:
    """Validate an event that was published."""
    validate_event(
        json.dumps(example["body"]).encode(), example["applicationProperties"], example["contentType"]
    )


def decimal(digits: str | None) -> Decimal | None:
    return None if digits is None else Decimal(digits)


def invoice_of(data: Schema) -> Invoice:
    """Return the invoice that an event says; what an event of the first shape does not say is not there."""
    amount, currency, terms = data["totalAmount"], data["currency"], data.get("paymentTerms")
    places = len(amount.partition(".")[2]) if amount else 0
    due, amounts = data.get("dueDate"), data.get("amounts", {})
    lines = tuple(map(line_of, data.get("lines") or ()))
    if data.get("linesOmitted"):
        # As many, and so long that they do not fit.
        lines = tuple(
            replace(
                LONG_LINE,
                id=str(uuid.UUID(int=number)),
                amount=decimal(amounts["linesTotal"]) if number == 0 else None,
            )
            for number in range(data["lineCount"])
        )
    columns = data.get("columns")
    return Invoice(
        id=data["invoiceId"],
        number=data["invoiceNumber"],
        name=data["name"],
        opportunity_id=data["opportunityId"],
        customer=Customer(**data["customer"]) if data["customer"] else None,
        total_amount=decimal(amount),
        currency=Currency(currency["id"], currency["isoCode"], places) if currency else None,
        pricing_error_code=data["pricingErrorCode"],
        created_on=datetime.fromisoformat(data["createdOn"]),
        order_id=data.get("orderId"),
        due_date=date.fromisoformat(due) if due else None,
        payment_terms=PaymentTerms(**terms) if terms else None,
        amounts=Amounts(*(decimal(amounts.get(name)) for name in AMOUNTS)),
        lines=lines,
        columns=None if columns is None else {name: column_of(column) for name, column in columns.items()},
    )


AMOUNTS = (
    *("linesTotal", "lineDiscounts", "discountAmount", "discountPercentage", "totalDiscounts"),
    *("totalBeforeFreight", "freight", "tax"),
)
LONG_LINE = Line("", description="x" * 200)
KINDS = dict(zip(("product", "bundle", "requiredPart", "optionalPart", "service"), LineKind, strict=True))


def line_of(line: Schema) -> Line:
    return Line(
        id=line["id"],
        position=line["position"],
        kind=KINDS[line["kind"]],
        parent_id=line["bundleLineId"],
        product=Product(**line["product"]) if line["product"] else None,
        description=line["description"],
        quantity=decimal(line["quantity"]),
        unit=line["unit"],
        price_per_unit=decimal(line["pricePerUnit"]),
        volume_discount_per_unit=decimal(line["volumeDiscountPerUnit"]),
        manual_discount=decimal(line["manualDiscount"]),
        base_amount=decimal(line["baseAmount"]),
        tax=decimal(line["tax"]),
        amount=decimal(line["amount"]),
    )


def column_of(column: Schema) -> ColumnValue:
    column_type, value = ColumnType(column["type"]), column["value"]
    if column_type in (ColumnType.NUMBER, ColumnType.MONEY):
        value = decimal(value)
    more = {name: column[name] for name in ("label", "table", "name", "error") if name in column}
    return ColumnValue(column_type, value, **more)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_json_schema_2020_12(name: str) -> None:
    schema = read(CONTRACTS / name)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)


def test_the_dataschema_of_the_event_is_the_id_of_its_schema() -> None:
    assert read(CONTRACTS / "invoice-created.v1.schema.json")["$id"] == DATA_SCHEMA
    event = read(CONTRACTS / "invoice-created.v1.event.schema.json")["properties"]
    assert (event["dataschema"]["const"], event["type"]["const"]) == (DATA_SCHEMA, EVENT_TYPE)


def test_the_asyncapi_document_is_valid(node: Callable[..., str]) -> None:
    assert node("javascript", "validate-asyncapi.mjs", "asyncapi.yaml", cwd=CONTRACTS) == ""


def test_the_validator_finds_what_is_wrong(node: Callable[..., str], tmp_path: Path) -> None:
    wrong = (CONTRACTS / "asyncapi.yaml").read_text().replace("action: receive", "action: eat")
    for schema in SCHEMAS:
        (tmp_path / schema).write_bytes((CONTRACTS / schema).read_bytes())
    (tmp_path / "asyncapi.yaml").write_text(wrong)
    assert "operations.receiveOpportunityWon" in node(
        "javascript", "validate-asyncapi.mjs", "asyncapi.yaml", cwd=tmp_path
    )


def asyncapi() -> Schema:
    return cast("Schema", yaml.safe_load((CONTRACTS / "asyncapi.yaml").read_text()))


def test_the_failed_queue_describes_the_properties_that_are_written() -> None:
    headers = asyncapi()["components"]["messages"]["Failed"]["headers"]["properties"]
    written = {*PARKED_PROPERTIES, ROOT, ATTEMPT, FIRST_SEEN}
    assert headers.keys() == written


def test_the_invoice_topic_describes_the_properties_that_are_written() -> None:
    example = invoice_of(read(FIRST_EXAMPLES[0])["body"]["data"])
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    written = invoice_created(
        example, dataverse_url="https://x.crm.dynamics.com", traceparent=trace
    ).application_properties
    headers = asyncapi()["components"]["messages"]["InvoiceCreated"]["headers"]
    Draft202012Validator(headers, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(written)
    assert headers["properties"].keys() == written.keys()


# --- What the page for consumers shows ---------------------------------------------------------------------------

PAGE = text("docs/invoice-created.md")


def shown(language: str) -> str:
    """Return the first block of a language on the page."""
    return PAGE.partition(f"```{language}\n")[2].partition("```")[0]


def test_the_page_shows_an_event_that_was_published() -> None:
    assert json.loads(shown("json")) == read(PUBLISHED / "invoice-created.v1" / "lines.json")["body"]


def test_the_page_shows_columns_that_were_published() -> None:
    block = PAGE.partition("### Further columns")[2].partition("```json\n")[2].partition("```")[0]
    example = read(PUBLISHED / "invoice-created.v1" / "bundle-and-columns.json")
    assert json.loads(block) == example["body"]["data"]["columns"]


def test_the_page_has_every_member_of_the_event() -> None:
    members = read(CONTRACTS / "invoice-created.v1.schema.json")["properties"]
    assert [
        name for name in members if f"`data.{name}" not in PAGE and f'\n    "{name}": ' not in PAGE
    ] == [], "Describe each in docs/invoice-created.md."


def test_the_types_are_those_that_the_generator_makes(node: Callable[..., str]) -> None:
    cli = "node_modules/json-schema-to-typescript/dist/src/cli.js"
    types = Path(__file__).parents[2] / "examples" / "javascript" / "invoice-created.v1.d.ts"
    made = node(
        "javascript", cli, "invoice-created.v1.event.schema.json", "--bannerComment", "", cwd=CONTRACTS
    )
    assert types.read_text() == made, f"Generate {types.name} again, as docs/invoice-created.md describes."


# --- Compatibility -----------------------------------------------------------------------------------------------


def what_breaks(old: Schema, new: Schema, place: str) -> Iterator[str]:
    """Yield where a schema says something else than the one that was published; only additions are free."""
    said = {"description", "title", "properties", "$defs"}
    for word in (old.keys() | new.keys()) - said:
        before, after = old.get(word), new.get(word)
        if word == "required" and set(before or ()) <= set(after or ()):
            continue
        if before != after:
            yield f"{place}.{word}"
    for word in ("properties", "$defs"):
        for name, member in old.get(word, {}).items():
            if name not in new.get(word, {}):
                yield f"{place}.{name}"
            else:
                yield from what_breaks(member, new[word][name], f"{place}.{name}")


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_says_what_it_said_when_it_was_published(name: str) -> None:
    """Members may be added, nothing else: code that was generated from the first schema still fits."""
    first = PUBLISHED / name.replace(".event", "").replace(".schema.json", "") / name
    assert first.exists(), f"{name} is new: keep a copy of it as {first.relative_to(PUBLISHED)}, for ever."
    broken = list(what_breaks(read(first), read(CONTRACTS / name), "$"))
    if "opportunity-won" in name and not broken:
        # Senders' old messages lack what is new.
        broken = sorted(
            set(read(CONTRACTS / name).get("required", ())) - set(read(first).get("required", ()))
        )
    assert not broken, MAKE_A_V2.format(", ".join(broken))


@pytest.mark.parametrize("path", INVOICE_EXAMPLES, ids=lambda path: path.stem)
def test_events_that_were_published_are_still_valid(path: Path) -> None:
    """Also for consumers of the first schema, who ignore the members that were added since."""
    example = read(path)
    try:
        check(example)
    except AssertionError as error:
        raise AssertionError(MAKE_A_V2.format(str(error))) from error
    assert_fits_first_schema(example["body"], path)


def assert_fits_first_schema(event: Schema, path: Path) -> None:
    first = validator("invoice-created.v1.event.schema.json", path.parent)
    problems = [error.message for error in first.iter_errors(event)]
    assert not problems, MAKE_A_V2.format("; ".join(problems))


def what_changed(now: Any, published: Any, place: str) -> Iterator[str]:  # noqa: ANN401 - parts of JSON
    """Yield where something else is said than what was published; there may be further members."""
    if isinstance(now, dict) and isinstance(published, dict):
        yield from (f"{place}.{name}" for name in published.keys() - now.keys())
        for name in published.keys() & now.keys():
            yield from what_changed(now[name], published[name], f"{place}.{name}")
    elif isinstance(now, list) and isinstance(published, list) and len(now) == len(published):
        for one, other in zip(now, published, strict=True):
            yield from what_changed(one, other, f"{place}[]")
    elif now != published:
        yield place


@pytest.mark.parametrize("path", INVOICE_EXAMPLES, ids=lambda path: path.stem)
def test_an_invoice_that_was_published_is_published_in_the_same_words(path: Path) -> None:
    """Members may be added, nothing else; and what is written now fits the schema as it was first published."""
    example = read(path)
    body = example["body"]
    trace = example["applicationProperties"]["traceparent"]
    message = invoice_created(invoice_of(body["data"]), dataverse_url=body["source"], traceparent=trace)
    now = {
        "messageId": message.message_id,
        "subject": message.subject,
        "contentType": message.content_type,
        "applicationProperties": message.application_properties,
        "body": json.loads(message.body),
    }
    changed = list(what_changed(now, example, "$"))
    assert not changed, MAKE_A_V2.format(f"A change to {', '.join(changed)}")
    assert_fits_first_schema(now["body"], path)


@pytest.mark.parametrize("path", WON_EXAMPLES, ids=lambda path: path.stem)
def test_wins_that_were_sent_are_still_understood(path: Path) -> None:
    """A message may wait in the queue or in the failed queue while a new version of the code is deployed."""
    example = read(path)
    body = example["body"]
    structured = "specversion" in body
    name = "opportunity-won.v1.event.schema.json" if structured else "opportunity-won.v1.schema.json"
    problems = [error.message for error in validator(name).iter_errors(body)]
    assert not problems, MAKE_A_V2.format("; ".join(problems))
    won = parse_event(json.dumps(body).encode(), example["applicationProperties"], example["contentType"])
    data = body["data"] if structured else body
    assert won == OpportunityWon(
        data["opportunityId"], data.get("organizationId"), data.get("correlationId")
    ), MAKE_A_V2.format("The parser")


def test_the_compact_form_of_a_retry_is_written_as_ever() -> None:
    """Golden vector: old code and new code run side by side during a deployment, and read each other's copies."""
    example = read(PUBLISHED / "opportunity-won.v1" / "copy-to-be-tried-again.json")["body"]
    won = OpportunityWon(example["opportunityId"], example["organizationId"], example["correlationId"])
    assert json.loads(compact_event(won)) == example, MAKE_A_V2.format("The compact event")


# --- The judges themselves ---------------------------------------------------------------------------------------

BREAKAGES: dict[str, Callable[[Schema], object]] = {
    "an id that is no GUID": lambda event: event["data"].update(invoiceId="1"),
    "an id in capitals": lambda event: event["data"].update(invoiceId=event["data"]["invoiceId"].upper()),
    "an amount as a number": lambda event: event["data"].update(totalAmount=12.5),
    "an amount with an exponent": lambda event: event["data"].update(totalAmount="1E+2"),
    "a member missing": lambda event: event["data"].pop("name"),
    "a member that nobody described": lambda event: event["data"].update(color="red"),
    "a time without zone": lambda event: event.update(time="2026-02-03T14:45:12"),
    "a time that is none": lambda event: event.update(time="yesterdayZ"),
    "a link that is none": lambda event: event["data"].update(link="no link"),
    "another type": lambda event: event.update(type="invoice-from-opportunity.sales.invoice.created.v2"),
    "another CloudEvents version": lambda event: event.update(specversion="0.3"),
    "a line without its amount": lambda event: event["data"]["lines"][0].pop("amount"),
    "a quantity as a number": lambda event: event["data"]["lines"][0].update(quantity=2),
    "a due date with a time": lambda event: event["data"].update(dueDate="2026-06-03T00:00:00Z"),
    "a member of a line that nobody described": lambda event: event["data"]["lines"][0].update(color="red"),
    "an attribute that is not copied": lambda event: event.update(extra="1"),
}


@pytest.mark.parametrize("breakage", BREAKAGES.values(), ids=BREAKAGES.keys())
def test_the_checker_finds(breakage: Callable[[Schema], object]) -> None:
    example = read(PUBLISHED / "invoice-created.v1" / "lines.json")
    breakage(example["body"])
    with pytest.raises(AssertionError):
        check(example)


@pytest.mark.parametrize(
    "properties", [{}, {"cloudEvents_subject": "opportunities/1"}, {"cloudEvents_extra": "1"}], ids=str
)
def test_the_checker_finds_copies_that_differ(properties: Schema) -> None:
    example = read(INVOICE_EXAMPLES[1])
    example["applicationProperties"] = (
        {**example["applicationProperties"], **properties} if properties else {}
    )
    with pytest.raises(AssertionError):
        check(example)


CHANGES: dict[str, Callable[[Schema], object]] = {
    "a member removed": lambda schema: schema["properties"].pop("name"),
    "a member renamed": lambda schema: schema["properties"].update(title=schema["properties"].pop("name")),
    "a member optional": lambda schema: schema["required"].remove("name"),
    "another type": lambda schema: schema["properties"]["totalAmount"].update(type="number"),
    "a narrower type": lambda schema: schema["properties"]["name"].update(type="string"),
    "a deep change": lambda schema: schema["properties"]["currency"]["properties"].pop("isoCode"),
    "a deep definition": lambda schema: schema["$defs"]["line"]["properties"].pop("amount"),
    "another id": lambda schema: schema.update({"$id": "urn:uuid:80106495-6621-4248-8cd6-0d75b728b193"}),
    "closed": lambda schema: schema.update(additionalProperties=False),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_comparison_finds(change: Callable[[Schema], object]) -> None:
    first, changed = (read(CONTRACTS / "invoice-created.v1.schema.json") for _ in range(2))
    change(changed)
    assert list(what_breaks(first, changed, "$"))


def test_the_comparison_lets_members_be_added_and_described() -> None:
    first, grown = (read(CONTRACTS / "invoice-created.v1.schema.json") for _ in range(2))
    grown["properties"]["dueOn"] = {"type": ["string", "null"]}
    grown["required"].append("dueOn")
    grown["properties"]["name"]["description"] = "In other words."
    assert not list(what_breaks(first, grown, "$"))


def test_another_invoice_is_another_event() -> None:
    """The comparisons above would also pass if every id were the same."""
    one = invoice_of(read(FIRST_EXAMPLES[1])["body"]["data"])
    other = replace(one, id="ffffffff-ffff-4fff-bfff-ffffffffffff")
    url = "https://x.crm.dynamics.com"
    assert (
        invoice_created(one, dataverse_url=url).message_id
        != invoice_created(other, dataverse_url=url).message_id
    )
