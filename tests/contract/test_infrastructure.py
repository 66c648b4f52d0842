"""What a compiler would say about the Bicep files, as far as it can be said without one, and that names agree.

There is no Bicep compiler here. A grammar checks the syntax; this module checks that what a file names is declared,
that modules are given what they ask for, and that settings, entities and alerts are called the same in Bicep, in the
code, in the sandbox and in the documentation.
"""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import json5
import pytest
import tree_sitter_bicep
import yaml
from tree_sitter import Language, Node, Parser

from operations import connect, login
from shared import bootstrap, errors
from shared.errors import RetryPolicy
from shared.message import Message
from shared.settings import dataverse_settings, retry_settings, service_bus_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from shared.clock import Deadline
    from shared.service_bus import Outgoing

ROOT = Path(__file__).resolve().parents[2]
INFRASTRUCTURE = ROOT / "infrastructure"
PARSER = Parser(Language(tree_sitter_bicep.language()))
BICEP = sorted(INFRASTRUCTURE.rglob("*.bicep"))
PARAMETERS = sorted(INFRASTRUCTURE.rglob("*.bicepparam"))

RUNBOOK = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
DEPLOY = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")

# What Bicep itself brings, of which these files use so much.
FUNCTIONS = {
    "allowed", "description", "empty", "guid", "loadJsonContent", "loadTextContent", "maxValue", "minLength",
    "minValue", "resourceGroup", "string", "subscriptionResourceId", "trim", "union", "uniqueString",
}  # fmt: skip

# Settings that the platform reads: the Functions host, its Service Bus extension, the Python worker.
PLATFORM_SETTINGS = {
    "APPLICATIONINSIGHTS_AUTHENTICATION_STRING",
    "APPLICATIONINSIGHTS_CONNECTION_STRING",
    "AzureWebJobsStorage__accountName",
    "AzureWebJobsStorage__clientId",
    "AzureWebJobsStorage__credential",
    "PYTHON_THREADPOOL_THREAD_COUNT",
    "ServiceBusConnection__clientId",
    "ServiceBusConnection__credential",
    "ServiceBusConnection__fullyQualifiedNamespace",
}
# Read where they are set, but an identity takes their place in Azure.
NOT_IN_AZURE = {"ServiceBusConnection"}


@dataclass
class Bicep:
    """A Bicep file, as far as the tests ask."""

    path: Path
    root: Node
    parameters: dict[str, bool] = field(default_factory=dict)  # name → has a default
    variables: dict[str, Node] = field(default_factory=dict)
    resources: dict[str, tuple[str, Node]] = field(default_factory=dict)  # symbol → (type, what it is)
    modules: dict[str, tuple[Path, dict[str, Node]]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Bicep:
        """Read a Bicep file, or a file of parameters."""
        source = path.read_text(encoding="utf-8")
        if path.suffix == ".bicepparam":
            # The grammar knows no parameter files. What they lack is a type.
            source = re.sub(r"^param (\w+) =", r"param \1 object =", source, flags=re.MULTILINE)
        file = cls(path, PARSER.parse(source.encode()).root_node)
        for node in file.root.named_children:
            if node.type.endswith("_declaration"):
                file._declare(node)
        return file

    def _declare(self, node: Node) -> None:
        name, *rest = (child for child in node.named_children if child.type != "compatible_identifier")
        symbol = text(name)
        match node.type:
            case "parameter_declaration":
                self.parameters[symbol] = len(rest) > 1
            case "variable_declaration":
                self.variables[symbol] = rest[-1]
            case "resource_declaration":
                self.resources[symbol] = (text(rest[0]).strip("'"), rest[-1])
            case "module_declaration":
                given = entries(entries(rest[-1])["params"])
                self.modules[symbol] = (self.path.parent / text(rest[0]).strip("'"), given)
            case "output_declaration":
                self.outputs.append(symbol)
            case other:
                pytest.fail(f"{self.path.name}: these tests do not know {other}")

    @property
    def symbols(self) -> set[str]:
        """Everything that an expression may refer to."""
        return {*self.parameters, *self.variables, *self.resources, *self.modules}

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the resources of a type (without version): symbol → name, parent and properties as values."""
        names = {symbol: value(node) for symbol, node in self.variables.items()}
        return {
            symbol: value(node, names)
            for symbol, (typed, node) in self.resources.items()
            if typed.split("@")[0] == kind and node.type == "object"
        }


def text(node: Node) -> str:
    return (node.text or b"").decode()


def walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from walk(child)


def entries(node: Node) -> dict[str, Node]:
    assert node.type == "object", text(node)
    return {
        text(each.named_children[0]).strip("'"): each.named_children[-1]
        for each in node.named_children
        if each.type == "object_property"
    }


def value(node: Node, names: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON's values
    """Return a literal as Python has it, a known name's value, and the source of everything else."""
    match node.type:
        case "string" if not any(child.type == "interpolation" for child in node.named_children):
            return text(node)[1:-1]
        case "number":
            return int(text(node))
        case "array":
            return [value(each, names) for each in node.named_children if each.type != "comment"]
        case "object":
            return {key: value(each, names) for key, each in entries(node).items()}
        case _:
            source = text(node)
            return {"true": True, "false": False}.get(source, (names or {}).get(source, source))


def used_symbols(node: Node, local: frozenset[str] = frozenset()) -> Iterator[tuple[str, Node]]:
    """Yield the names that an expression refers to, without those of its own loops."""
    if node.type == "identifier":
        if text(node) not in local:
            yield text(node), node
        return
    children = list(node.named_children)
    if node.type == "for_statement":
        local |= {text(children[0])}
    if node.type == "object_property" and children[0].type in {"identifier", "compatible_identifier"}:
        children = children[1:]
    if node.type.endswith("_declaration"):
        children = children[1:]
    for child in children:
        yield from used_symbols(child, local)


def read_main() -> Bicep:
    return Bicep.read(INFRASTRUCTURE / "main.bicep")


def in_service_bus() -> Bicep:
    """Return the Service Bus module with the names that main.bicep gives it."""
    main = read_main()
    path, given = main.modules["serviceBus"]
    file = Bicep.read(path)
    for name, node in given.items():
        file.variables[name] = main.variables.get(text(node), node)
    return file


def app_settings() -> dict[str, str]:
    """Return the app settings that Bicep sets: name → source of the value."""
    file = Bicep.read(INFRASTRUCTURE / "modules" / "function-app.bicep")
    _, settings = file.resources["settings"]
    found = {}
    for node in [entries(settings)["properties"], file.variables["organizationSetting"]]:
        for each in walk(node):
            if each.type == "object":
                found.update({name: text(given) for name, given in entries(each).items()})
    return found


class Recording(dict[str, str]):
    """An environment that remembers what it was asked for."""

    def __init__(self, *given: Mapping[str, str]) -> None:
        super().__init__(*given)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401 - as dict has it
        """Remember the question, and answer it."""
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> str:
        self.asked.add(key)
        return super().__getitem__(key)


def settings_read() -> set[str]:
    """Return the names that the code asks its environment for, whatever it finds there."""
    readers: list[Callable[[Mapping[str, str]], object]] = [
        service_bus_settings,
        retry_settings,
        dataverse_settings,
    ]
    asked: set[str] = set()
    for connection in ({}, {"ServiceBusConnection": "Endpoint=sb://localhost;"}):
        for read in readers:
            environment = Recording(connection)
            with suppress(errors.InvalidSettings):  # what is missing was asked for nevertheless
                read(environment)
            asked |= environment.asked
    return asked


@pytest.mark.parametrize("path", [*BICEP, *PARAMETERS], ids=lambda path: path.name)
def test_syntax(path: Path) -> None:
    wrong = [node for node in walk(Bicep.read(path).root) if node.is_error or node.is_missing]

    assert [f"line {node.start_point[0] + 1}: {text(node)[:60]}" for node in wrong] == []


@pytest.mark.parametrize("path", [*BICEP, *PARAMETERS], ids=lambda path: path.name)
def test_says_that_no_compiler_has_seen_it(path: Path) -> None:
    head = re.split(r"\n(?:\nparam |targetScope|using )", path.read_text(encoding="utf-8"))[0]

    assert "No compiler has seen this file" in head


@pytest.mark.parametrize("path", BICEP, ids=lambda path: path.name)
def test_every_name_is_declared_and_every_declaration_is_used(path: Path) -> None:
    file = Bicep.read(path)
    used = {
        name: node.start_point[0] + 1
        for declaration in file.root.named_children
        for name, node in used_symbols(declaration)
    }

    unknown = {name: f"line {line}" for name, line in used.items() if name not in file.symbols | FUNCTIONS}
    assert unknown == {}
    assert {*file.parameters, *file.variables} - set(used) == set()


@pytest.mark.parametrize("path", BICEP, ids=lambda path: path.name)
def test_modules_get_the_parameters_that_they_ask_for_and_give_the_outputs_that_are_used(path: Path) -> None:
    file = Bicep.read(path)

    for symbol, (module_path, given) in file.modules.items():
        module = Bicep.read(module_path)
        required = {name for name, has_default in module.parameters.items() if not has_default}
        assert required - set(given) == set(), symbol
        assert set(given) - set(module.parameters) == set(), symbol
        used = set(re.findall(rf"\b{symbol}\.outputs\.(\w+)", text(file.root)))
        assert used - set(module.outputs) == set(), symbol


def test_files_that_bicep_loads_are_there() -> None:
    for path in BICEP:
        for name in re.findall(r"load(?:Json|Text)Content\('([^']+)'\)", path.read_text(encoding="utf-8")):
            assert (path.parent / name).is_file(), f"{path.name}: {name}"


@pytest.mark.parametrize("path", PARAMETERS, ids=lambda path: path.name)
def test_environments_set_parameters_that_exist_and_all_that_are_required(path: Path) -> None:
    main = read_main()
    given = Bicep.read(path).parameters

    assert set(given) - set(main.parameters) == set()
    assert {name for name, has_default in main.parameters.items() if not has_default} - set(given) == set()
    assert f"environmentName = '{path.stem}'" in path.read_text(encoding="utf-8")


def test_every_setting_that_the_code_reads_is_set() -> None:
    assert settings_read() - set(app_settings()) - NOT_IN_AZURE == set()


def test_no_setting_is_set_that_nobody_reads() -> None:
    assert set(app_settings()) - settings_read() - PLATFORM_SETTINGS == set()


def test_the_trigger_asks_for_settings_that_are_set() -> None:
    (trigger,) = json.loads((ROOT / "GenerateInvoiceFunction" / "function.json").read_bytes())["bindings"]

    assert trigger["queueName"].strip("%") in app_settings()
    assert f"{trigger['connection']}__fullyQualifiedNamespace" in app_settings()
    assert f"{trigger['connection']}__credential" in app_settings()


def test_the_values_that_bicep_sets_are_accepted_by_the_code() -> None:
    """Literals as they are; what is known only in Azure in the form in which Azure gives it."""
    known_in_azure = {
        "identityClientId": "11111111-2222-3333-4444-555555555555",
        "serviceBusHost": "sb-invoicing-dev.servicebus.windows.net",
        "dataverseUrl": "https://contoso.crm.dynamics.com",
        "dataverseOrganizationId": "11111111-2222-3333-4444-555555555555",
        "orderedOpportunity": "skip",
        "opportunityWonQueueName": "opportunity-won",
        "failedQueueName": "opportunity-won-failed",
        "invoiceCreatedTopicName": "invoice-created",
    }
    environment = {
        name: known_in_azure.get(source, source.strip("'")) for name, source in app_settings().items()
    }

    assert service_bus_settings(environment).invocation_deadline == 240
    assert retry_settings(environment) == retry_settings({})
    assert dataverse_settings(environment).url == "https://contoso.crm.dynamics.com"


def test_times_of_one_invocation_contain_each_other() -> None:
    """An invocation's own deadline < functionTimeout < lock renewal."""
    host = json.loads((ROOT / "host.json").read_bytes())
    deadline = float(app_settings()["INVOCATION_DEADLINE_SECONDS"].strip("'"))
    renewal = host["extensions"]["serviceBus"]["maxAutoLockRenewalDuration"]

    assert deadline < _seconds(host["functionTimeout"]) < _seconds(renewal)


def test_as_many_threads_as_messages_at_once_and_fewer_calls_than_dataverse_allows() -> None:
    file = Bicep.read(INFRASTRUCTURE / "modules" / "function-app.bicep")
    at_once = json.loads((ROOT / "host.json").read_bytes())["extensions"]["serviceBus"]["maxConcurrentCalls"]
    instances = int(re.findall(r"param maximumInstanceCount int = (\d+)", text(read_main().root))[0])

    threads = app_settings()["PYTHON_THREADPOOL_THREAD_COUNT"]
    assert threads == "string(hostConfiguration.extensions.serviceBus.maxConcurrentCalls)"
    assert text(file.variables["hostConfiguration"]) == "loadJsonContent('../../host.json')"
    assert at_once * instances < 52


def test_the_sandbox_has_the_entities_of_azure() -> None:
    """Entity by entity and property by property; what the sandbox leaves out is listed here."""
    left_out = {
        "defaultMessageTimeToLive",
        "status",
    }  # nothing in the sandbox lives for days, or is switched off
    defaults = {"requiresDuplicateDetection": False, "deadLetteringOnMessageExpiration": False}
    file = in_service_bus()
    (namespace,) = json5.loads((ROOT / "sandbox/service_bus/entities.json").read_text(encoding="utf-8"))[
        "UserConfig"
    ]["Namespaces"]

    queues = _by_name(file.of_type("Microsoft.ServiceBus/namespaces/queues"))
    topics = _by_name(file.of_type("Microsoft.ServiceBus/namespaces/topics"))
    subscriptions = _by_name(file.of_type("Microsoft.ServiceBus/namespaces/topics/subscriptions"))
    (topic,) = namespace["Topics"]
    pairs = [
        *((queues.pop(each["Name"]), each) for each in namespace["Queues"]),
        (topics.pop(topic["Name"]), topic),
        *((subscriptions.pop(each["Name"]), each) for each in topic["Subscriptions"]),
    ]

    assert (queues, topics, subscriptions) == ({}, {}, {})
    for azure, sandbox in pairs:
        there = {name[0].lower() + name[1:]: given for name, given in sandbox["Properties"].items()}
        for name in left_out:
            there.pop(name, None)
        here = {name: given for name, given in azure.items() if name not in left_out}
        if here.get("forwardDeadLetteredMessagesTo") == "failed.name":
            here["forwardDeadLetteredMessagesTo"] = "opportunity-won-failed"
        if sandbox["Name"] == "opportunity-won-failed":
            here.pop("deadLetteringOnMessageExpiration")  # nothing expires there
        assert defaults | here == defaults | there, sandbox["Name"]


def test_the_published_contract_has_the_entities_of_azure() -> None:
    """What the AsyncAPI document tells others of queues and topics is what Bicep creates."""
    file = in_service_bus()
    created = {
        **_by_name(file.of_type("Microsoft.ServiceBus/namespaces/queues")),
        **_by_name(file.of_type("Microsoft.ServiceBus/namespaces/topics")),
    }
    created["opportunity-won"]["forwardDeadLetteredMessagesTo"] = "opportunity-won-failed"
    contract = yaml.safe_load((ROOT / "shared/contracts/asyncapi.yaml").read_text(encoding="utf-8"))

    assert {channel["address"] for channel in contract["channels"].values()} == set(created)
    for channel in contract["channels"].values():
        told = channel["x-azure-service-bus"]
        del told["entity"]
        assert told.items() <= created[channel["address"]].items(), channel["address"]


def test_dataverse_may_send_to_one_queue_and_nothing_else_has_a_key() -> None:
    file = in_service_bus()
    kinds = [typed.split("@")[0] for typed, _ in file.resources.values() if "authorizationRules" in typed]

    (rule,) = file.of_type("Microsoft.ServiceBus/namespaces/queues/authorizationRules").values()
    assert kinds == ["Microsoft.ServiceBus/namespaces/queues/authorizationRules"]
    assert (rule["parent"], rule["properties"]) == ("opportunityWon", {"rights": ["Send"]})
    # The name belongs to the key: with another one Dataverse is refused.
    for page in (DEPLOY, RUNBOOK):
        assert set(re.findall(r"--sas-key-name (\S+)", page)) == {rule["name"]}


def test_no_key_is_read_or_given_out() -> None:
    for path in BICEP:
        assert not re.search(
            r"\blist(Keys|Accounts|Secrets)|primaryKey|connectionStrings", path.read_text(encoding="utf-8")
        )


def test_the_function_has_the_rights_of_the_design_and_no_other() -> None:
    sender, receiver = "69a216fc-b8fb-44d8-bc22-1f3c2cd27a39", "4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0"
    given = {
        (each["scope"], each["properties"]["roleDefinitionId"])
        for each in in_service_bus().of_type("Microsoft.Authorization/roleAssignments").values()
    }

    def role(name: str) -> str:
        return f"subscriptionResourceId('Microsoft.Authorization/roleDefinitions', {name})"

    file = in_service_bus()
    assert (value(file.variables["dataSender"]), value(file.variables["dataReceiver"])) == (sender, receiver)
    assert given == {
        ("opportunityWon", role("dataReceiver")),
        ("opportunityWon", role("dataSender")),
        ("failed", role("dataSender")),
        ("invoiceCreated", role("dataSender")),
        ("namespace", "entityReader.id"),
    }


class _Discarding:
    def send(self, entity: str, outgoing: Outgoing, deadline: Deadline) -> None:
        """Nothing is sent: only what is logged counts."""


def test_the_query_of_the_alert_understands_the_line_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A retry is logged by the deployed code, and read with the pattern of the alert's query."""
    settings = {
        "ServiceBusConnection__fullyQualifiedNamespace": "sb.servicebus.windows.net",
        "OPPORTUNITY_WON_QUEUE": "opportunity-won",
        "OPPORTUNITY_WON_FAILED_QUEUE": "opportunity-won-failed",
        "INVOICE_CREATED_TOPIC": "invoice-created",
    }
    handler = bootstrap.build(settings, sender=_Discarding(), random=lambda: 0.5)
    message = Message(
        body=b'{"opportunityId": "5b1ce8a8-6c39-4c1b-9b0b-3d6a5a6ce0a1"}',
        message_id="root: of all",
        sequence_number=1,
        enqueued_at=datetime.now(UTC),
        content_type="application/json",
        correlation_id=None,
        subject=None,
        properties={
            "InvoicingRoot": "root: of all",
            "InvoicingAttempt": 3,
            "InvoicingFirstSeen": (datetime.now(UTC) - timedelta(seconds=2000)).isoformat(),
        },
    )

    with caplog.at_level(logging.WARNING):
        handler.handle(message)

    (line,) = [record.message for record in caplog.records if record.message.startswith("retry: ")]
    (pattern,) = re.findall(
        r"parse Message with (.+)", (INFRASTRUCTURE / "queries/old-retries.kql").read_text()
    )
    found = re.fullmatch(_as_regular_expression(pattern), line, re.DOTALL)
    assert found
    assert found["Reason"] == "InvalidSettings"
    assert found["Opportunity"] == "5b1ce8a8-6c39-4c1b-9b0b-3d6a5a6ce0a1"
    assert int(found["Attempt"]) == 3
    assert 1990 <= int(found["AgeSeconds"]) <= 2010


def test_the_query_for_throttling_asks_for_a_reason_that_exists() -> None:
    query = (INFRASTRUCTURE / "queries/dataverse-throttled.kql").read_text(encoding="utf-8")

    assert f'"retry: reason={errors.DataverseThrottled.reason} "' in query


def test_the_runbook_knows_every_alert() -> None:
    alerts = re.findall(
        r"^    name: '([\w-]+)'", (INFRASTRUCTURE / "modules/alerts.bicep").read_text("utf-8"), re.MULTILINE
    )

    assert len(alerts) == 6
    assert [name for name in alerts if f"\n| `{name}` |" not in RUNBOOK] == []


def test_the_runbook_knows_every_reason_and_no_other() -> None:
    """Those of the error tree, and those that the broker gives itself."""
    reasons = {error.reason for error in _leaves(errors.InvoicingFailure)}
    table = RUNBOOK.split("## Reasons")[1].split("## Log lines")[0]

    known = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert known == reasons | {"MaxDeliveryCountExceeded", "TTLExpiredException"}


def test_the_runbook_knows_every_line_that_is_logged() -> None:
    lines = {
        prefix
        for path in (ROOT / "shared").glob("*.py")
        for prefix in re.findall(r"_logger\.\w+\(\s*\"([a-z ]+:) ", path.read_text("utf-8"))
    }

    assert "retry:" in lines
    assert [prefix for prefix in lines if f"\n| `{prefix}` |" not in RUNBOOK] == []


def test_the_runbook_shows_the_query_of_the_alert() -> None:
    query = (INFRASTRUCTURE / "queries/old-retries.kql").read_text("utf-8")

    assert "\n".join(line for line in query.splitlines() if not line.startswith("//")) in RUNBOOK


def test_the_sum_in_the_documentation_is_the_one_that_is_deployed() -> None:
    at_once = json.loads((ROOT / "host.json").read_bytes())["extensions"]["serviceBus"]["maxConcurrentCalls"]
    (instances,) = re.findall(r"param maximumInstanceCount int = (\d+)", text(read_main().root))

    factors = f"= {instances} * 1 * {at_once} = **{int(instances) * at_once}**"
    assert factors.replace("*", "\N{MULTIPLICATION SIGN}", 2) in DEPLOY


def test_the_page_of_settings_has_each_setting_and_the_defaults_of_the_code() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", _settings_page("App settings"), re.MULTILINE))
    read_by_azure = {"PYTHON_THREADPOOL_THREAD_COUNT", "ServiceBusConnection__credential"}
    defaults = retry_settings({})
    seconds = {
        "RETRY_OPEN_SECONDS": defaults.bounds[RetryPolicy.OPEN],
        "RETRY_RECORD_SECONDS": defaults.bounds[RetryPolicy.RECORD],
        "RETRY_OUTAGE_SECONDS": defaults.bounds[RetryPolicy.OUTAGE],
        "RETRY_FIRST_DELAY_SECONDS": defaults.first_delay,
        "RETRY_MAX_DELAY_SECONDS": defaults.longest_delay,
    }

    assert set(rows) == settings_read() | read_by_azure
    assert {name: rows[name] for name in seconds} == {
        name: f"{time.total_seconds():.0f}" for name, time in seconds.items()
    }


def test_the_page_of_settings_has_the_values_of_host_json() -> None:
    host = json.loads((ROOT / "host.json").read_bytes())
    values = {**host, **host["extensions"]["serviceBus"]}
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", _settings_page("host.json"), re.MULTILINE))

    assert set(rows) == set(host["extensions"]["serviceBus"]) | {"functionTimeout"}
    for name, shown in rows.items():
        match values[name]:
            case str(time) if ":" in time:
                assert shown == f"{_seconds(time) // 60} min", name
            case bool(switch):
                assert shown == str(switch).lower(), name
            case str() | int() as value:
                assert shown.strip("`") == str(value), name
            case _:
                assert shown == "the host's defaults, written down", name


def test_the_page_of_settings_has_what_the_commands_read_besides() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \|", _settings_page("What the commands of `operations` read besides"), re.MULTILINE
    )

    assert set(rows) == {login.CLIENT_ID, login.ANSWER_SECONDS, connect.SAS_KEY_SETTING}


def test_nothing_can_be_reached_with_a_key_but_the_queue_that_dataverse_posts_to() -> None:
    app = Bicep.read(INFRASTRUCTURE / "modules" / "function-app.bicep")
    (storage,) = app.of_type("Microsoft.Storage/storageAccounts").values()
    passwords = app.of_type("Microsoft.Web/sites/basicPublishingCredentialsPolicies").values()
    (logs,) = (
        Bicep.read(INFRASTRUCTURE / "modules" / "monitoring.bicep")
        .of_type("Microsoft.Insights/components")
        .values()
    )

    assert storage["properties"]["allowSharedKeyAccess"] is False
    assert storage["properties"]["allowBlobPublicAccess"] is False
    assert {each["name"]: each["properties"]["allow"] for each in passwords} == {"scm": False, "ftp": False}
    assert logs["properties"]["DisableLocalAuth"] is True


def test_the_providers_to_register_are_those_of_the_resources() -> None:
    """In an empty subscription none is; that of authorization always is."""
    used = {typed.partition("/")[0] for path in BICEP for typed, _ in Bicep.read(path).resources.values()} - {
        "Microsoft.Authorization"
    }
    (named,) = re.findall(r"for provider in (.*?); do", DEPLOY, re.DOTALL)

    assert set(named.replace("\\\n", " ").split()) == used


def _settings_page(heading: str) -> str:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def _leaves(error: type[errors.InvoicingFailure]) -> list[type[errors.InvoicingFailure]]:
    below = [leaf for each in error.__subclasses__() for leaf in _leaves(each)]
    return below or [error]


def _as_regular_expression(pattern: str) -> str:
    """Translate the pattern of KQL's `parse`: literals in quotes, columns with a type between them."""
    kinds = {"string": ".*?", "int": r"\d+"}
    parts = re.findall(r'"([^"]*)"|(\w+):(\w+)', pattern)
    return "".join(
        re.escape(literal) if literal else f"(?P<{column}>{kinds[kind]})" for literal, column, kind in parts
    )


def _by_name(resources: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each["properties"] for each in resources.values()}


def _seconds(duration: str) -> int:
    hours, minutes, seconds = (int(part) for part in duration.split(":"))
    return hours * 3600 + minutes * 60 + seconds
