"""The functions of an app: as they are declared, and with their Service Bus triggers resolved by the app settings.

A `Declaration` is what function.json (v1 model) or the decorators (v2 model) say. A `Function` is one that this host
runs. A function with another kind of trigger is left out with a warning, because an app may have those as well; what a
Service Bus trigger asks for and this host does not support is an error.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from sandbox.functions_host.configuration import (
    ConnectionString,
    IdentityConnection,
    InvalidAppConfiguration,
    Settings,
    read_connection,
    read_json,
)

_log = logging.getLogger(__name__)

_SCRIPT_FILE_SETTING = "PYTHON_SCRIPT_FILE_NAME"
_V2_SCRIPT_FILE = "function_app.py"
_TRIGGER = "servicebustrigger"


class Model(StrEnum):
    """Azure's programming models for Python, with the package that runs each."""

    V1 = "azure-functions-runtime-v1"
    V2 = "azure-functions-runtime"

    @property
    def module(self) -> str:
        """The import name of the package."""
        return self.value.replace("-", "_")

    @classmethod
    def of(cls, app_root: Path, settings: Settings) -> "Model":
        """Tell the model of an app: a script at the top, function_app.py unless a setting says otherwise, is v2."""
        script = settings.get(_SCRIPT_FILE_SETTING) or _V2_SCRIPT_FILE
        return cls.V2 if (app_root / script).exists() else cls.V1


class DataType(StrEnum):
    """How a trigger asks for the body."""

    BINARY = "binary"
    STRING = "string"


@dataclass(frozen=True)
class Source:
    """What a function receives from: a queue, or a topic's subscription."""

    entity: str
    subscription: str = ""

    @property
    def path(self) -> str:
        """The path of the entity."""
        return f"{self.entity}/Subscriptions/{self.subscription}" if self.subscription else self.entity


@dataclass(frozen=True)
class Declaration:
    """A function as its app declares it; `bindings` are as in function.json."""

    name: str
    function_id: str
    directory: Path
    script_file: Path
    entry_point: str
    bindings: tuple[Mapping[str, object], ...]
    disabled: bool = False


@dataclass(frozen=True)
class Trigger:
    """A Service Bus trigger: the parameter it fills, where it receives, and how."""

    parameter: str
    source: Source
    connection: ConnectionString | IdentityConnection
    data_type: DataType


@dataclass(frozen=True)
class Function:
    """A function with its trigger; `disabled` ones are loaded but get no messages."""

    declaration: Declaration
    trigger: Trigger
    disabled: bool

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.declaration.name


def declarations_of_v1(app_root: Path) -> tuple[Declaration, ...]:
    """Read every folder with a function.json; raises InvalidAppConfiguration where there is none."""
    folders = sorted(path.parent for path in app_root.glob("*/function.json"))
    if not folders:
        raise InvalidAppConfiguration(f"neither function_app.py nor a function.json was found in {app_root}")
    return tuple(_declaration(folder) for folder in folders)


def declaration_from_metadata(metadata: Any) -> Declaration:  # noqa: ANN401 - protobuf classes are made at run time
    """Return the declaration that a v2 worker describes in an RpcFunctionMetadata."""
    directory = Path(metadata.directory)
    return Declaration(
        name=metadata.name,
        function_id=metadata.function_id,
        directory=directory,
        script_file=directory / metadata.script_file,
        entry_point=metadata.entry_point,
        bindings=tuple(json.loads(text) for text in metadata.raw_bindings),
    )


def connection_names(declarations: Iterable[Declaration]) -> frozenset[str]:
    """Return what the Service Bus bindings call their connections."""
    return frozenset(
        _connection_name(binding)
        for declaration in declarations
        for binding in declaration.bindings
        if str(binding.get("type")).lower().startswith("servicebus")
    )


def read_functions(declarations: Sequence[Declaration], settings: Settings) -> list[Function]:
    """Return the functions that this host runs; raises InvalidAppConfiguration where there is none."""
    functions, left_out = [], []
    for declaration in declarations:
        reason = _reason_to_leave_out(declaration)
        if reason:
            left_out.append(f"{declaration.name}: {reason}")
        else:
            functions.append(_function(declaration, settings))
    if not functions:
        raise InvalidAppConfiguration("; ".join(left_out) or "the app declares no function")
    for text in left_out:
        _log.warning("The sandbox does not run %s", text)
    return functions


def sources(declarations: Sequence[Declaration], settings: Settings) -> list[Source]:
    """Return where the functions that this host runs receive; raises InvalidAppConfiguration."""
    return [
        _source(_trigger_binding(declaration), settings, declaration.name)
        for declaration in declarations
        if not _reason_to_leave_out(declaration)
    ]


def _declaration(folder: Path) -> Declaration:
    definition = read_json(folder / "function.json")
    bindings = definition.get("bindings")
    if not isinstance(bindings, list) or not all(isinstance(binding, dict) for binding in bindings):
        raise InvalidAppConfiguration(f"{folder.name}/function.json: bindings must be a list of objects")
    return Declaration(
        name=folder.name,
        function_id=folder.name,
        directory=folder.resolve(),
        script_file=(folder / str(definition.get("scriptFile", "__init__.py"))).resolve(),
        entry_point=str(definition.get("entryPoint", "main")),
        bindings=tuple(bindings),
        disabled=definition.get("disabled") is True,
    )


def _reason_to_leave_out(declaration: Declaration) -> str:
    """Return why this host does not run a function, or "" where it does."""
    others = [
        str(binding.get("type")) for binding in declaration.bindings if not _is_service_bus_trigger(binding)
    ]
    if len(declaration.bindings) == 1 and not others:
        return ""
    has = ", ".join(others) or "none"
    return f"this host runs functions with exactly one binding, a serviceBusTrigger; it has {has}"


def _is_service_bus_trigger(binding: Mapping[str, object]) -> bool:
    return str(binding.get("type")).lower() == _TRIGGER


def _trigger_binding(declaration: Declaration) -> Mapping[str, object]:
    return next(filter(_is_service_bus_trigger, declaration.bindings))


def _function(declaration: Declaration, settings: Settings) -> Function:
    binding = _trigger_binding(declaration)
    _check_trigger(binding, declaration.name)
    return Function(
        declaration,
        Trigger(
            parameter=str(binding["name"]),
            source=_source(binding, settings, declaration.name),
            connection=read_connection(_connection_name(binding), settings),
            data_type=_data_type(binding, declaration.name),
        ),
        declaration.disabled or _is_disabled(declaration.name, settings),
    )


def _check_trigger(binding: Mapping[str, object], where: str) -> None:
    if not binding.get("name"):
        raise InvalidAppConfiguration(f"{where}: the trigger's name is missing")
    if _word(binding, "direction", "in") != "in":
        raise InvalidAppConfiguration(f"{where}: the direction of a trigger is 'in'")
    if _word(binding, "cardinality", "one") != "one":
        raise InvalidAppConfiguration(f"{where}: cardinality must be 'one'; batches are not supported here")
    if binding.get("isSessionsEnabled"):
        raise InvalidAppConfiguration(f"{where}: sessions are not supported here")
    if False in (binding.get("autoComplete"), binding.get("autoCompleteMessages")):
        raise InvalidAppConfiguration(
            f"{where}: autoComplete must stay on: a Python function cannot settle a message"
        )


def _source(binding: Mapping[str, object], settings: Settings, where: str) -> Source:
    queue, topic, subscription = (
        settings.resolve(str(binding.get(name) or ""))
        for name in ("queueName", "topicName", "subscriptionName")
    )
    if queue and not topic and not subscription:
        return Source(queue)
    if topic and subscription and not queue:
        return Source(topic, subscription)
    raise InvalidAppConfiguration(
        f"{where}: a trigger has a queueName, or a topicName and a subscriptionName"
    )


def _data_type(binding: Mapping[str, object], where: str) -> DataType:
    # Azure's host takes a string where nothing is said.
    word = _word(binding, "dataType", DataType.STRING)
    if word not in list(DataType):
        raise InvalidAppConfiguration(f"{where}: dataType must be 'binary' or 'string' here, not {word!r}")
    return DataType(word)


def _word(binding: Mapping[str, object], name: str, default: str) -> str:
    # function.json has lower case, the decorators write names of enumerations in upper case.
    return str(binding.get(name) or default).lower()


def _connection_name(binding: Mapping[str, object]) -> str:
    return str(binding.get("connection") or "ServiceBus")


def _is_disabled(name: str, settings: Settings) -> bool:
    # Linux plans take underscores, because a dot is not allowed in the name of an environment variable.
    switches = (settings.get(f"AzureWebJobs.{name}.Disabled"), settings.get(f"AzureWebJobs_{name}_Disabled"))
    return any((value or "").lower() in {"true", "1"} for value in switches)
