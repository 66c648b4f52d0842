"""What Bicep would deploy, as the reviewed snapshots show it, against the code, the sandbox and the docs.

The snapshots are compared with the Bicep files where a compiler is found; everything else here needs none.
"""

from __future__ import annotations

import inspect
import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import json5
import pytest
import yaml
from repository import ROOT, section, text

from infrastructure import bicep, settings
from operations import connect, environment, failed
from sandbox.service_bus.configuration import DEFAULT_ENTITIES, Configuration
from shared import errors
from shared.settings import dataverse_settings, retry_settings, service_bus_settings, telemetry_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

INFRASTRUCTURE = ROOT / "infrastructure"
ENVIRONMENTS = ("dev", "test", "prod")
ALL_LINTER_RULES = 50

DEPLOY, RUNBOOK, SECURITY = (text(page) for page in ("docs/deploy.md", "docs/operate.md", "SECURITY.md"))

ROLES = {
    "Azure Service Bus Data Receiver": "4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0",
    "Azure Service Bus Data Sender": "69a216fc-b8fb-44d8-bc22-1f3c2cd27a39",
    "Monitoring Metrics Publisher": "3913510d-42f4-4e42-8a64-420c390055eb",
    "Reader": "acdd72a7-3385-48ef-bd42-f606fba81ae7",
    "Storage Blob Data Owner": "b7e6dc6d-f1e8-4753-8033-0f276bb0955b",
    "Storage Table Data Contributor": "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3",
}
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
HOST = json.loads(text("host.json"))
SETTINGS = text("docs/settings.md")
# Read, and not set in every environment: optional ones, and the connection string that an identity replaces.
NOT_IN_AZURE = {"DATAVERSE_ORGANIZATION_ID", "TELEMETRY_EXPORTER", "ServiceBusConnection"}


class Snapshot:
    """What one environment would deploy."""

    def __init__(self, environment: str) -> None:
        document = json.loads(text(f"infrastructure/environments/{environment}.snapshot.json"))
        self.resources: list[dict[str, Any]] = document["predictedResources"]
        self.diagnostics = document["diagnostics"]
        self.outputs: dict[str, str] = document["outputs"]

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the resources of a type by the last part of their names."""
        found = [each for each in self.resources if each["type"] == kind]
        return {each["name"].rsplit("/", 1)[-1]: each for each in found}

    def only(self, kind: str) -> dict[str, Any]:
        """Return the only resource of a type."""
        (resource,) = self.of_type(kind).values()
        return resource

    @property
    def app_settings(self) -> dict[str, str]:
        """The app settings; a value that only Azure can compute is an expression in brackets."""
        settings: dict[str, str] = self.of_type("Microsoft.Web/sites/config")["appsettings"]["properties"]
        return settings

    @property
    def instances(self) -> int:
        """How many instances of the function there may be."""
        config = self.only("Microsoft.Web/sites")["properties"]["functionAppConfig"]
        return int(config["scaleAndConcurrency"]["maximumInstanceCount"])

    @property
    def assignments(self) -> set[tuple[str, str]]:
        """The role assignments: the last part of the scope, and the role's name."""
        names = {role: name for name, role in ROLES.items()}
        return {
            (
                each["id"].split("/providers/Microsoft.Authorization/")[0].rsplit("/", 1)[-1],
                names[each["properties"]["roleDefinitionId"].rsplit("/", 1)[-1]],
            )
            for each in self.of_type("Microsoft.Authorization/roleAssignments").values()
        }

    @property
    def alerts(self) -> dict[str, dict[str, Any]]:
        """The properties of all alert rules, by name without application and environment."""
        rules = {
            **self.of_type("Microsoft.Insights/metricAlerts"),
            **self.of_type("Microsoft.Insights/scheduledQueryRules"),
        }
        return {name.split("-", 2)[2]: each["properties"] for name, each in rules.items()}


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def snapshot(request: pytest.FixtureRequest) -> Snapshot:
    """Give each environment in turn."""
    return Snapshot(request.param)


@pytest.fixture(scope="module")
def prod() -> Snapshot:
    """Give the production environment."""
    return Snapshot("prod")


@pytest.fixture(scope="module")
def compiler() -> bicep.Compiler:
    """Give the Bicep compiler, or skip."""
    found = bicep.Compiler.find()
    if found is None:
        pytest.skip(bicep.MISSING)
    return found


def entities() -> dict[str, Any]:
    """Return the namespace of entities.json."""
    document = json5.loads(text("infrastructure/entities.json"))
    (namespace,) = document["UserConfig"]["Namespaces"]
    return dict(namespace)


class Recording(dict[str, str]):
    """An environment that records which names are read."""

    def __init__(self, *given: Mapping[str, str]) -> None:
        super().__init__(*given)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401 - like dict
        """Record the name."""
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> str:
        self.asked.add(key)
        return super().__getitem__(key)


def settings_read() -> set[str]:
    """Return the names that the code reads from its environment."""
    readers: list[Callable[[Mapping[str, str]], object]] = [
        service_bus_settings,
        retry_settings,
        dataverse_settings,
        telemetry_settings,
    ]
    asked: set[str] = set()
    for connection in ({}, {"ServiceBusConnection": "Endpoint=sb://localhost;"}):
        for read in readers:
            environment = Recording(connection)
            with suppress(errors.InvalidSettings):  # a missing name was read nevertheless
                read(environment)
            asked |= environment.asked
    return asked


# The compiler.


@pytest.mark.timeout(400)  # some fifty starts of the compiler
def test_the_compiler_accepts_all_files_and_the_snapshots_are_current(compiler: bicep.Compiler) -> None:
    assert bicep.problems(compiler) == []


def test_a_warning_of_the_compiler_is_a_failure(compiler: bicep.Compiler, tmp_path: Path) -> None:
    """The compiler itself exits with 0: an unknown property is only a warning to it."""
    wrong = tmp_path / "wrong.bicep"
    wrong.write_text(
        "resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {\n"
        "  name: 'x'\n  location: 'westeurope'\n  propertys: {}\n}\n",
        encoding="utf-8",
    )

    with pytest.raises(bicep.CheckFailed, match="propertys"):
        compiler.lint(wrong)


def test_a_snapshot_that_differs_is_a_failure(compiler: bicep.Compiler, tmp_path: Path) -> None:
    parameters, template = tmp_path / "small.bicepparam", tmp_path / "small.bicep"
    template.write_text(
        "param name string\n"
        "resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {\n"
        "  name: name\n  location: 'westeurope'\n}\n",
        encoding="utf-8",
    )
    parameters.write_text("using 'small.bicep'\nparam name = 'before'\n", encoding="utf-8")
    compiler.write_snapshot(parameters)
    compiler.validate_snapshot(parameters)
    parameters.write_text("using 'small.bicep'\nparam name = 'after'\n", encoding="utf-8")

    with pytest.raises(bicep.CheckFailed, match="after"):
        compiler.validate_snapshot(parameters)


def test_every_linter_rule_is_an_error() -> None:
    rules = json.loads(text("infrastructure/bicepconfig.json"))["analyzers"]["core"]["rules"]

    assert len(rules) == ALL_LINTER_RULES
    assert {rule["level"] for rule in rules.values()} == {"error"}


# What-if.


def test_every_name_is_known_before_the_deployment(snapshot: Snapshot) -> None:
    """What-if omits resources whose names derive from values of the deployment."""
    assert snapshot.diagnostics == []
    assert [each["id"] for each in snapshot.resources if "[" in each["id"]] == []


def test_nothing_but_ids_of_the_identity_and_addresses_is_unknown_before(snapshot: Snapshot) -> None:
    unknown = re.findall(r'"(\w+)": "\[([a-z]+)\(', json.dumps(snapshot.resources))

    assert {name for name, _ in unknown} == {
        "APPLICATIONINSIGHTS_AUTHENTICATION_STRING",
        "APPLICATIONINSIGHTS_CONNECTION_STRING",
        "AZURE_CLIENT_ID",
        "AzureWebJobsStorage__clientId",
        "ServiceBusConnection__clientId",
        "principalId",
        "value",  # the address of the storage account
    }


# App settings.


def test_every_setting_that_the_code_reads_is_set(snapshot: Snapshot) -> None:
    missing = settings_read() - set(snapshot.app_settings) - NOT_IN_AZURE
    assert missing == set(), "Set them in infrastructure/modules/function-app.bicep and run make snapshot."


def test_no_setting_is_set_that_nobody_reads(snapshot: Snapshot) -> None:
    assert set(snapshot.app_settings) - settings_read() - PLATFORM_SETTINGS == set()


def test_settings_that_leave_azure_are_those_that_operations_reads() -> None:
    """The writer and the reader of a settings file have the same list, which has every name that the code reads."""
    assert settings.APP_SETTINGS == environment.APP_SETTINGS
    assert settings_read() <= settings.APP_SETTINGS, "Add each to both lists."


def test_the_trigger_reads_settings_that_are_set(snapshot: Snapshot) -> None:
    (trigger,) = json.loads(text("GenerateInvoiceFunction/function.json"))["bindings"]

    assert trigger["queueName"].strip("%") in snapshot.app_settings
    assert f"{trigger['connection']}__fullyQualifiedNamespace" in snapshot.app_settings
    assert f"{trigger['connection']}__credential" in snapshot.app_settings


def test_the_values_that_bicep_sets_are_accepted_by_the_code(snapshot: Snapshot) -> None:
    """Expressions that only Azure can compute are replaced by values of the same form."""
    client_id = "11111111-2222-3333-4444-555555555555"
    environment = {
        name: client_id if value.startswith("[") else value for name, value in snapshot.app_settings.items()
    }

    assert service_bus_settings(environment).invocation_deadline == 240
    assert retry_settings(environment) == retry_settings({})
    assert dataverse_settings(environment).url == snapshot.app_settings["DATAVERSE_URL"]


def test_the_organization_is_set_where_it_is_known() -> None:
    source = text("infrastructure/modules/function-app.bicep")

    assert "empty(dataverseOrganizationId) ? {} : organizationSetting" in source
    assert "DATAVERSE_ORGANIZATION_ID: dataverseOrganizationId" in source


def test_the_time_limits_of_one_invocation_contain_each_other(snapshot: Snapshot) -> None:
    """An invocation's own deadline < functionTimeout < lock renewal."""
    deadline = float(snapshot.app_settings["INVOCATION_DEADLINE_SECONDS"])
    renewal = HOST["extensions"]["serviceBus"]["maxAutoLockRenewalDuration"]

    assert deadline < _seconds(HOST["functionTimeout"]) < _seconds(renewal)


def test_the_bounds_of_retries_fit_into_the_life_of_a_message(snapshot: Snapshot) -> None:
    (won, _) = Configuration.load().queues
    longest = max(int(value) for name, value in snapshot.app_settings.items() if name.startswith("RETRY_"))

    assert won.default_time_to_live is not None
    assert 2 * longest < won.default_time_to_live.total_seconds()


def test_as_many_threads_as_concurrent_messages_and_fewer_calls_than_dataverse_allows(
    snapshot: Snapshot,
) -> None:
    concurrent = HOST["extensions"]["serviceBus"]["maxConcurrentCalls"]

    assert snapshot.app_settings["PYTHON_THREADPOOL_THREAD_COUNT"] == str(concurrent)
    assert concurrent * snapshot.instances < 52


# Entities.


def test_azure_has_the_entities_of_the_file(snapshot: Snapshot) -> None:
    """Entity by entity and property by property; Bicep adds a size, and the status that `paused` says."""
    namespace = entities()
    (topic,) = namespace["Topics"]
    designed = {
        "queues": namespace["Queues"],
        "topics": namespace["Topics"],
        "topics/subscriptions": topic["Subscriptions"],
    }

    for kind, expected in designed.items():
        deployed = snapshot.of_type(f"Microsoft.ServiceBus/namespaces/{kind}")
        assert set(deployed) == {each["Name"] for each in expected}
        for each in expected:
            properties = deployed[each["Name"]]["properties"]
            added: dict[str, Any] = {"maxSizeInMegabytes": 5120} if kind != "topics/subscriptions" else {}
            if each["Name"] == "opportunity-won":
                added["status"] = "Active"
            lowered = {name[0].lower() + name[1:]: value for name, value in each["Properties"].items()}
            assert properties == lowered | added, each["Name"]


def test_the_sandbox_has_the_same_entities() -> None:
    assert DEFAULT_ENTITIES == INFRASTRUCTURE / "entities.json"


def test_the_app_uses_the_entities_of_the_file(snapshot: Snapshot) -> None:
    won, failed = (queue["Name"] for queue in entities()["Queues"])
    (created,) = (topic["Name"] for topic in entities()["Topics"])

    assert snapshot.app_settings["OPPORTUNITY_WON_QUEUE"] == won
    assert snapshot.app_settings["OPPORTUNITY_WON_FAILED_QUEUE"] == failed
    assert snapshot.app_settings["INVOICE_CREATED_TOPIC"] == created


def test_the_published_contract_has_the_entities_of_azure(prod: Snapshot) -> None:
    """What the AsyncAPI document says about queues and topics is what Bicep creates."""
    created = {
        **prod.of_type("Microsoft.ServiceBus/namespaces/queues"),
        **prod.of_type("Microsoft.ServiceBus/namespaces/topics"),
    }
    contract = yaml.safe_load(text("shared/contracts/asyncapi.yaml"))

    assert {channel["address"] for channel in contract["channels"].values()} == set(created)
    for channel in contract["channels"].values():
        documented = channel["x-azure-service-bus"]
        del documented["entity"]
        assert documented.items() <= created[channel["address"]]["properties"].items(), channel["address"]


# Keys and rights.


def test_dataverse_may_send_to_one_queue_and_no_other_rule_exists(snapshot: Snapshot) -> None:
    (rule,) = [each for each in snapshot.resources if "authorizationRules" in each["type"]]

    assert rule["name"].endswith("/opportunity-won/dataverse")
    assert rule["properties"] == {"rights": ["Send"]}
    # The name belongs to the key: Dataverse is refused with another one.
    for page in (DEPLOY, RUNBOOK):
        assert set(re.findall(r"--sas-key-name (\S+)", page)) == {"dataverse"}


def test_no_key_is_read_or_is_an_output(snapshot: Snapshot) -> None:
    document = json.dumps([snapshot.resources, snapshot.outputs])

    assert not re.search(r"list(Keys|Accounts|Secrets)|primaryKey|connectionStrings", document)
    assert set(snapshot.outputs) == {
        "functionAppName",
        "identityClientId",
        "serviceBusNamespaceId",
        "serviceBusNamespaceName",
    }


def test_the_function_has_the_rights_of_the_design_and_no_other(snapshot: Snapshot) -> None:
    storage = snapshot.only("Microsoft.Storage/storageAccounts")["name"]
    namespace = snapshot.only("Microsoft.ServiceBus/namespaces")["name"]
    component = snapshot.only("Microsoft.Insights/components")["name"]

    assert snapshot.assignments == {
        ("opportunity-won", "Azure Service Bus Data Receiver"),
        ("opportunity-won", "Azure Service Bus Data Sender"),
        ("opportunity-won-failed", "Azure Service Bus Data Sender"),
        ("invoice-created", "Azure Service Bus Data Sender"),
        (namespace, "Reader"),
        (storage, "Storage Blob Data Owner"),
        (storage, "Storage Table Data Contributor"),
        (component, "Monitoring Metrics Publisher"),
    }


def test_the_pipeline_assigns_roles_to_the_function_identity_only(snapshot: Snapshot) -> None:
    """So the condition on its right to assign roles can name service principals and these roles."""
    for each in snapshot.of_type("Microsoft.Authorization/roleAssignments").values():
        assert each["properties"]["principalType"] == "ServicePrincipal"
        assert "/userAssignedIdentities/id-invoicing-" in each["properties"]["principalId"]
    assert snapshot.of_type("Microsoft.Authorization/roleDefinitions") == {}


def test_the_deploy_connection_may_assign_the_roles_of_the_template_and_no_other(prod: Snapshot) -> None:
    (listed,) = re.findall(r"^roles='(.*)'$", DEPLOY, re.MULTILINE)

    assert set(listed.split(", ")) == {ROLES[role] for _, role in prod.assignments}
    assert "PrincipalType] ForAnyOfAnyValues:StringEqualsIgnoreCase {'ServicePrincipal'}" in DEPLOY


def test_reading_and_publishing_are_different_roles_of_people() -> None:
    source = text("infrastructure/operators.bicep")
    given = re.findall(
        r"= if \(!empty\((\w+)\)\) \{\n  name: guid\((\w+)\.id, (\w+), (\w+)\)\n  scope: (\w+)\n  properties: \{\n"
        r"    principalId: (\w+)\n    principalType: '(\w+)'\n    roleDefinitionId: .*Definitions', (\w+)\)\n",
        source,
    )

    assert len(given) == source.count("resource ") - source.count(" existing = {")
    assert {(who, role, scope, kind) for *_, scope, who, kind, role in given} == {
        ("operatorsGroupId", "dataReceiver", "opportunityWon", "Group"),
        ("operatorsGroupId", "dataSender", "opportunityWon", "Group"),
        ("operatorsGroupId", "dataReceiver", "failed", "Group"),
        ("operatorsGroupId", "dataReceiver", "audit", "Group"),
        ("publishersGroupId", "dataSender", "invoiceCreated", "Group"),
        ("readPrincipalId", "dataReceiver", "opportunityWon", "ServicePrincipal"),
        ("readPrincipalId", "dataReceiver", "failed", "ServicePrincipal"),
        ("readPrincipalId", "dataReceiver", "audit", "ServicePrincipal"),
    }
    # A name that derives from something else would collide, or change with it.
    for condition, named_scope, named_who, named_role, scope, who, _, role in given:
        assert (condition, named_scope, named_who, named_role) == (who, scope, who, role)


def test_nothing_accepts_a_key_or_password_but_the_queue_that_dataverse_posts_to(snapshot: Snapshot) -> None:
    storage = snapshot.only("Microsoft.Storage/storageAccounts")["properties"]
    passwords = snapshot.of_type("Microsoft.Web/sites/basicPublishingCredentialsPolicies")
    workspace = snapshot.only("Microsoft.OperationalInsights/workspaces")["properties"]

    assert storage["allowSharedKeyAccess"] is False
    assert storage["allowBlobPublicAccess"] is False
    assert {name: each["properties"]["allow"] for name, each in passwords.items()} == {
        "scm": False,
        "ftp": False,
    }
    assert workspace["features"]["disableLocalAuth"] is True
    assert snapshot.only("Microsoft.Insights/components")["properties"]["DisableLocalAuth"] is True


def test_inbound_rules_and_tls_versions_are_stated(snapshot: Snapshot) -> None:
    site = snapshot.only("Microsoft.Web/sites")["properties"]

    assert site["publicNetworkAccess"] == "Enabled"
    assert site["siteConfig"] == {
        "minTlsVersion": "1.2",
        "scmMinTlsVersion": "1.2",
        "ipSecurityRestrictionsDefaultAction": "Allow",
        "scmIpSecurityRestrictionsUseMain": False,
        "scmIpSecurityRestrictionsDefaultAction": "Allow",
    }
    assert snapshot.only("Microsoft.ServiceBus/namespaces")["properties"]["minimumTlsVersion"] == "1.2"


def test_the_namespace_of_production_cannot_be_deleted() -> None:
    locks = {name: Snapshot(name).of_type("Microsoft.Authorization/locks") for name in ENVIRONMENTS}

    (lock,) = locks["prod"].values()
    assert lock["properties"]["level"] == "CanNotDelete"
    assert "/providers/Microsoft.ServiceBus/namespaces/sb-invoicing-prod-" in lock["id"]
    assert (locks["dev"], locks["test"]) == ({}, {})


# Logs and alerts.


@pytest.mark.parametrize(("environment", "days"), [("dev", 30), ("test", 30), ("prod", 90)])
def test_logs_are_kept_as_long_as_promised(environment: str, days: int) -> None:
    """Without a retention of their own, Azure keeps the tables of Application Insights for 90 days."""
    snapshot = Snapshot(environment)
    tables = snapshot.of_type("Microsoft.OperationalInsights/workspaces/tables")

    assert {"AppTraces", "AppRequests", "AppExceptions", "AppDependencies", "AppMetrics"} <= set(tables)
    for table in tables.values():
        assert table["properties"] == {"retentionInDays": days, "totalRetentionInDays": days}
    assert snapshot.only("Microsoft.OperationalInsights/workspaces")["properties"]["retentionInDays"] == days
    assert "30 days, prod 90 (`logRetentionDays`)" in SECURITY


def test_changes_of_the_namespace_are_logged(snapshot: Snapshot) -> None:
    (setting,) = snapshot.of_type("Microsoft.Insights/diagnosticSettings").values()

    assert "/Microsoft.ServiceBus/namespaces/sb-invoicing-" in setting["id"]
    assert setting["properties"]["logs"] == [{"categoryGroup": "allLogs", "enabled": True}]


def test_the_runbook_describes_every_alert(snapshot: Snapshot) -> None:
    assert [name for name in snapshot.alerts if f"\n| `{name}` |" not in RUNBOOK] == []


def test_an_open_alert_hides_no_later_failure(snapshot: Snapshot) -> None:
    """A stateful alert notifies once until its condition ends, and a failed message may be in the queue for weeks."""
    parked, reminder = snapshot.alerts["parked"], snapshot.alerts["failed-messages-daily"]
    (rule,) = snapshot.of_type("Microsoft.AlertsManagement/actionRules").values()
    (recurrence,) = rule["properties"]["schedule"]["recurrences"]

    assert parked["autoMitigate"] is False
    assert reminder["autoMitigate"] is False
    # Azure notifies after one to two evaluations, so at least once in the hour that the rule opens.
    assert reminder["evaluationFrequency"] == "PT30M"
    assert recurrence == {"recurrenceType": "Daily", "startTime": "07:00:00", "endTime": "08:00:00"}
    assert rule["properties"]["conditions"][0]["values"] == [rule["name"]]
    assert reminder["actions"] == []
    # Retries for one reason must not hide the retries for another.
    (criterion,) = snapshot.alerts["old-retries"]["criteria"]["allOf"]
    assert criterion["dimensions"] == [{"name": "Reason", "operator": "Include", "values": ["*"]}]


def test_every_alert_but_the_reminder_reaches_the_operators(snapshot: Snapshot) -> None:
    group = snapshot.only("Microsoft.Insights/actionGroups")
    reminder = snapshot.only("Microsoft.AlertsManagement/actionRules")["properties"]["actions"]

    for name, alert in snapshot.alerts.items():
        if name != "failed-messages-daily":
            assert group["id"] in json.dumps(alert["actions"]), name
    assert reminder == [{"actionType": "AddActionGroups", "actionGroupIds": [group["id"]]}]
    assert [each["emailAddress"] for each in group["properties"]["emailReceivers"]] == [
        "invoicing-operations@contoso.com"
    ]


def test_the_alert_on_size_fires_before_the_queue_is_full(snapshot: Snapshot) -> None:
    (criterion,) = snapshot.alerts["queue-size"]["criteria"]["allOf"]
    queue = snapshot.of_type("Microsoft.ServiceBus/namespaces/queues")["opportunity-won"]["properties"]

    assert (criterion["metricName"], criterion["timeAggregation"]) == ("Size", "Maximum")
    assert criterion["threshold"] == 0.8 * queue["maxSizeInMegabytes"] * 1024 * 1024


def test_the_workbook_has_a_tile_for_each_query(snapshot: Snapshot) -> None:
    workbook = snapshot.only("Microsoft.Insights/workbooks")["properties"]
    parameters, *tiles = json.loads(workbook["serializedData"])["items"]
    queries = {path.stem: text(path) for path in (INFRASTRUCTURE / "queries/workbook").iterdir()}

    assert {tile["name"]: tile["content"]["query"] for tile in tiles} == queries
    (time_range,) = parameters["content"]["parameters"]
    assert {tile["content"]["timeContextFromParameter"] for tile in tiles} == {time_range["name"]}


def test_the_alerts_have_the_queries_of_the_files(snapshot: Snapshot) -> None:
    queries = {path.stem: text(path) for path in (INFRASTRUCTURE / "queries/alerts").iterdir()}
    deployed = {
        name: alert["criteria"]["allOf"][0]["query"]
        for name, alert in snapshot.alerts.items()
        if "query" in alert["criteria"]["allOf"][0]
    }

    assert deployed == queries


# The documentation.


def test_every_reason_is_described_and_no_other() -> None:
    """Those of the error tree, and those that the broker gives itself."""
    reasons = {
        error.reason
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.InvoicingFailure) and "reason" in vars(error)
    } | {"MaxDeliveryCountExceeded", "TTLExpiredException"}
    # A win that stays open counts as withdrawn, and without Service Bus nothing can be parked.
    never_parked = {errors.OpportunityStillOpen.reason, errors.ServiceBusUnavailable.reason}
    contract = yaml.safe_load(text("shared/contracts/asyncapi.yaml"))
    headers = contract["components"]["messages"]["Failed"]["headers"]["properties"]

    assert set(re.findall(r"^\| `(\w+)` \|", section(RUNBOOK, "Reasons"), re.MULTILINE)) == reasons
    assert sorted(headers["DeadLetterReason"]["enum"]) == sorted(reasons - never_parked)


def test_the_runbook_describes_every_line_that_is_logged() -> None:
    lines = {
        prefix
        for path in (ROOT / "shared").glob("*.py")
        for prefix in re.findall(r"_logger\.\w+\(\s*\"([a-z ]+:) ", text(path))
    }

    assert "retry:" in lines
    assert [prefix for prefix in lines if f"\n| `{prefix}` |" not in RUNBOOK] == []


def test_the_runbook_shows_the_query_of_the_alert() -> None:
    query = text("infrastructure/queries/alerts/old-retries.kql")

    assert "\n".join(line for line in query.splitlines() if not line.startswith("//")) in RUNBOOK


def test_the_product_in_the_documentation_is_the_one_that_is_deployed(prod: Snapshot) -> None:
    concurrent = int(prod.app_settings["PYTHON_THREADPOOL_THREAD_COUNT"])

    factors = f"= {prod.instances} * 1 * {concurrent} = **{prod.instances * concurrent}**"
    assert factors.replace("*", "\N{MULTIPLICATION SIGN}", 2) in DEPLOY


def test_the_page_of_settings_has_each_setting_and_the_values_of_azure(prod: Snapshot) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section(SETTINGS, "App settings"), re.MULTILINE))
    read_by_azure = {"PYTHON_THREADPOOL_THREAD_COUNT", "ServiceBusConnection__credential"}
    retries = {name: value for name, value in prod.app_settings.items() if name.startswith("RETRY_")}

    assert set(rows) == settings_read() | read_by_azure, "Describe each in docs/settings.md."
    assert {name: rows[name] for name in retries} == retries


def test_the_page_of_settings_names_the_parameters_of_the_retries() -> None:
    main = text("infrastructure/main.bicep")
    page = section(SETTINGS, "App settings")
    parameters = re.findall(r"^param (retry\w+) int = ", main, re.MULTILINE)

    assert len(parameters) == 5
    assert [name for name in parameters if f"`{name}`" not in page] == []


def test_the_page_of_settings_has_the_values_of_host_json() -> None:
    values = {**HOST, **HOST["extensions"]["serviceBus"]}
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section(SETTINGS, "host.json"), re.MULTILINE))

    assert set(rows) == set(HOST["extensions"]["serviceBus"]) | {"functionTimeout"}
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
        r"^\| `(\w+)` \|", section(SETTINGS, "What the commands of `operations` read besides"), re.MULTILINE
    )

    assert set(rows) == {
        environment.CLIENT_ID,
        environment.RESPONSE_SECONDS,
        failed.AUDIT_FILE,
        connect.SAS_KEY_SETTING,
    }


def test_the_providers_to_register_are_those_of_the_resources(prod: Snapshot) -> None:
    """In an empty subscription none is; that of authorization always is."""
    used = {each["type"].partition("/")[0] for each in prod.resources} - {"Microsoft.Authorization"}
    (named,) = re.findall(r"for provider in (.*?); do", DEPLOY, re.DOTALL)

    assert set(named.replace("\\\n", " ").split()) == used


def test_the_documentation_says_how_much_a_deployment_creates(prod: Snapshot) -> None:
    assert f"{len(Snapshot('dev').resources)} resources" in DEPLOY
    for kind, shown in (
        ("metricAlerts", "metric alerts"),
        ("scheduledQueryRules", "log alerts, every 5 minutes"),
    ):
        count = len(prod.of_type(f"Microsoft.Insights/{kind}"))
        assert f"| {count} {shown} |" in DEPLOY


def _seconds(duration: str) -> int:
    hours, minutes, seconds = (int(part) for part in duration.split(":"))
    return hours * 3600 + minutes * 60 + seconds
