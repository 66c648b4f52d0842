"""Checks a published event against the contract: the JSON Schemas, and the `cloudevents` package as a reader."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cloudevents.core.bindings.amqp import AMQPMessage, from_amqp_event, from_binary_event
from cloudevents.core.exceptions import CloudEventValidationError
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONTRACTS = Path(__file__).parents[2] / "shared" / "contracts"
_PREFIX = "cloudEvents_"


@cache
def schema(name: str, folder: Path = CONTRACTS) -> dict[str, Any]:
    """Return a schema by its file's name."""
    return cast("dict[str, Any]", json.loads((folder / name).read_bytes()))


@cache
def validator(name: str, folder: Path = CONTRACTS) -> Draft202012Validator:
    """Return a validator, formats included, that finds the other schemas of the folder by their files' names."""
    registry: Registry[Any] = Registry().with_resources(
        (file.name, Resource.from_contents(schema(file.name, folder)))
        for file in folder.glob("*.schema.json")
    )
    return Draft202012Validator(
        schema(name, folder), registry=registry, format_checker=Draft202012Validator.FORMAT_CHECKER
    )


def validate_event(body: bytes, application_properties: Mapping[str, object], content_type: str) -> None:
    """Raise AssertionError, naming all that is wrong, unless this is "invoice created" as promised to consumers."""
    try:
        event = json.loads(body)
    except ValueError as error:
        raise AssertionError(f"An event was published that is no JSON: {error}") from error
    problems = [
        f"{error.json_path}: {error.message}"
        for error in validator("invoice-created.v1.event.schema.json").iter_errors(event)
    ]
    assert not problems, f"An event was published that breaks its schema: {'; '.join(problems)}"
    data_schema = schema("invoice-created.v1.schema.json")
    undescribed = list(_undescribed(event["data"], data_schema, data_schema["$defs"], "$.data"))
    assert not undescribed, (
        "An event was published with data that its schema, shared/contracts/invoice-created.v1.schema.json, does not "
        f"describe: {undescribed}"
    )

    message = AMQPMessage(
        properties={"content-type": content_type},
        application_properties=dict(application_properties),
        application_data=body,
    )
    try:
        read = from_amqp_event(message)
        # The copies of the attributes, read as a binary event.
        copies = from_binary_event(message).get_attributes()
    except CloudEventValidationError as error:
        raise AssertionError(f"The cloudevents package refuses the event: {error}") from error
    assert read.get_data() == event["data"], "The cloudevents package reads other data."
    attributes = {name: value for name, value in read.get_attributes().items() if value is not None}
    assert attributes.keys() == event.keys() - {"data"}, "The cloudevents package reads other attributes."

    # Binary mode takes the data's content type from the message, whose content is the whole event here.
    assert {**copies, "datacontenttype": attributes["datacontenttype"]} == attributes, (
        "The copies of the attributes in the application properties differ from the event."
    )
    copied = {name.removeprefix(_PREFIX) for name in application_properties if name.startswith(_PREFIX)}
    assert copied == attributes.keys() - {"datacontenttype"}, (
        "Not every attribute is copied, or one too many is."
    )


def _undescribed(
    value: object, described: dict[str, Any], definitions: dict[str, Any], place: str
) -> Iterator[str]:
    """Yield the paths of members that the schema does not describe: they are valid, but ours to describe."""
    if "$ref" in described:
        described = definitions[described["$ref"].removeprefix("#/$defs/")]
    if isinstance(value, list):
        for item in value:
            yield from _undescribed(item, described.get("items", {}), definitions, f"{place}[]")
    elif isinstance(value, dict):
        for name, member in value.items():
            schema_of_member = described.get("properties", {}).get(
                name, described.get("additionalProperties")
            )
            if schema_of_member is None:
                yield f"{place}.{name}"
            else:
                yield from _undescribed(member, schema_of_member, definitions, f"{place}.{name}")
