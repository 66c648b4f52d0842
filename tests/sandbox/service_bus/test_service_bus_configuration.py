"""The entities file: what it may contain, and how problems are reported."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from sandbox.service_bus import Configuration, InvalidConfiguration, Role, RoleAssignment
from sandbox.service_bus.configuration import ALL_RIGHTS, Right, SasRule, Status
from sandbox.service_bus.filters import ConstantFilter, CorrelationFilter, SqlFilter

# As the official emulator ships it, shortened: comments, rules of both kinds, its own limits.
EMULATORS_OWN = """
{
  "UserConfig": {
    "Namespaces": [
      {
        "Name": "sbemulatorns",
        "Queues": [
          {
            "Name": "queue.1",
            "Properties": {
              "DeadLetteringOnMessageExpiration": false,
              "DefaultMessageTimeToLive": "PT1H",
              "DuplicateDetectionHistoryTimeWindow": "PT20S",
              "ForwardDeadLetteredMessagesTo": "",
              "ForwardTo": "",
              "LockDuration": "PT1M",
              "MaxDeliveryCount": 3,
              "RequiresDuplicateDetection": false,
              "RequiresSession": false
            }
          }
        ],
        "Topics": [
          {
            "Name": "topic.1",
            "Properties": {
              "DefaultMessageTimeToLive": "PT1H",
              "DuplicateDetectionHistoryTimeWindow": "PT20S",
              "RequiresDuplicateDetection": false
            },
            "Subscriptions": [
              {
                "Name": "subscription.1",
                "Properties": { "LockDuration": "PT1M", "MaxDeliveryCount": 3, "RequiresSession": false },
                "Rules": [
                  {
                    "Name": "app-prop-filter-1",
                    "Properties": {
                      "FilterType": "Correlation",
                      "CorrelationFilter": {
                        "ContentType": "application/text",
                        "CorrelationId": "id1",
                        "Label": "subject1",
                        "MessageId": "msgid1",
                        "ReplyTo": "someQueue",
                        "ReplyToSessionId": "sessionId",
                        "SessionId": "session1",
                        "To": "xyz",
                        "Properties": { "prop1": "value1" }
                      }
                    }
                  },
                  {
                    "Name": "sql",
                    "Properties": {
                      "FilterType": "Sql",
                      "SqlFilter": { "SqlExpression": "sys.MessageId = '123456' AND userProp1 = 'value1'" }
                    }
                  }
                ]
              },
              { "Name": "subscription.3" } // takes all
            ]
          }
        ]
      }
    ],
    "Logging": { "Type": "File" }
  }
}
"""


def parse(queue: dict[str, Any] | None = None, **namespace: Any) -> Configuration:  # noqa: ANN401 - any JSON
    """Parse a file with one queue `q` of these properties, and these members of the namespace."""
    entities = {"Name": "n", "Queues": [{"Name": "q", "Properties": queue or {}}], **namespace}
    return Configuration.parse(json.dumps({"UserConfig": {"Namespaces": [entities]}}))


def problems(act: Callable[[], Configuration]) -> tuple[str, ...]:
    """Return what is wrong, and check that the error lists it line by line."""
    with pytest.raises(InvalidConfiguration) as caught:
        act()
    assert str(caught.value).count("\n") == len(caught.value.problems)
    return caught.value.problems


def test_the_emulators_own_file_is_understood() -> None:
    configuration = Configuration.parse(EMULATORS_OWN)
    [queue], [topic] = configuration.queues, configuration.topics
    assert (queue.path, queue.max_delivery_count, queue.lock_duration) == ("queue.1", 3, timedelta(minutes=1))
    assert queue.default_time_to_live == timedelta(hours=1)
    assert (queue.forward_to, queue.forward_dead_letters_to) == (None, None)
    assert queue.duplicate_detection_window is None
    first, third = topic.subscriptions
    assert [type(rule.filter) for rule in first.rules] == [CorrelationFilter, SqlFilter]
    assert third.queue.path == "topic.1/Subscriptions/subscription.3"
    assert [rule.name for rule in third.rules] == ["$Default"]
    assert third.rules[0].filter == ConstantFilter(value=True)
    assert configuration.sas_rules == (SasRule("RootManageSharedAccessKey", ("SAS_KEY_VALUE",), ALL_RIGHTS),)


def test_the_default_entities_are_those_of_the_design() -> None:
    configuration = Configuration.load()
    won, failed = configuration.queues
    assert (won.path, won.max_delivery_count, won.lock_duration) == (
        "opportunity-won",
        10,
        timedelta(minutes=1),
    )
    assert won.duplicate_detection_window == timedelta(minutes=10)
    assert won.forward_dead_letters_to == failed.path == "opportunity-won-failed"
    assert won.dead_lettering_on_expiration
    assert (failed.max_delivery_count, failed.default_time_to_live) == (2000, None)
    assert failed.duplicate_detection_window is None
    [topic] = configuration.topics
    assert (topic.path, topic.duplicate_detection_window) == ("invoice-created", timedelta(days=7))
    assert [each.name for each in topic.subscriptions] == ["audit"]
    dataverse = next(rule for rule in configuration.sas_rules if rule.scope == "opportunity-won")
    assert dataverse.rights == Right.SEND


def test_limits_are_as_wide_as_azures() -> None:
    configuration = parse(
        {
            "MaxDeliveryCount": 2000,
            "LockDuration": "PT5M",
            "RequiresDuplicateDetection": True,
            "DuplicateDetectionHistoryTimeWindow": "P7D",
            "DefaultMessageTimeToLive": "P10675199DT2H48M5.4775807S",
            "Status": "receivedisabled",
        }
    )
    [queue] = configuration.queues
    assert queue.duplicate_detection_window == timedelta(days=7)
    assert queue.default_time_to_live is None
    assert queue.status is Status.RECEIVE_DISABLED


@pytest.mark.parametrize(
    ("queue", "problem"),
    [
        ({"MaxDeliveryCount": 0}, "MaxDeliveryCount: must be from 1 to 2000, not 0"),
        ({"MaxDeliveryCount": 2001}, "MaxDeliveryCount: must be from 1 to 2000, not 2001"),
        ({"MaxDeliveryCount": True}, "MaxDeliveryCount: must be a whole number, not true or false"),
        ({"MaxDeliveryCount": "3"}, "MaxDeliveryCount: must be a whole number, not a string"),
        ({"LockDuration": "PT4S"}, "LockDuration: must be from PT5S to PT5M, not PT4S"),
        ({"LockDuration": "PT6M"}, "LockDuration: must be from PT5S to PT5M, not PT6M"),
        ({"LockDuration": "1m"}, "LockDuration: must be an ISO 8601 duration such as PT1M or P7D, not '1m'"),
        (
            {"LockDuration": "P1M"},
            "LockDuration: must be an ISO 8601 duration such as PT1M or P7D, not 'P1M'",
        ),
        (
            {"DuplicateDetectionHistoryTimeWindow": "P8D"},
            "DuplicateDetectionHistoryTimeWindow: must be from PT20S to P7D, not P8D",
        ),
        (
            {"Status": "Resting"},
            "Status: must be one of Active, Disabled, SendDisabled, ReceiveDisabled, not 'Resting'",
        ),
    ],
)
def test_a_wrong_property_is_named_with_its_path(queue: dict[str, Any], problem: str) -> None:
    assert problems(lambda: parse(queue)) == (f"UserConfig.Namespaces[n].Queues[q].Properties.{problem}",)


def test_all_problems_are_reported_at_once() -> None:
    found = problems(
        lambda: parse(
            {"MaxDeliveryCount": 0, "LockDuration": "x"},
            Topics=[{"Name": "t", "Subscriptions": [{"Name": "s", "Rules": [{"Name": "r"}]}], "Odd": 1}],
            AuthorizationRules=[{"Name": "a", "Rights": ["Read"]}],
        )
    )
    assert [each.split(":")[0].removeprefix("UserConfig.Namespaces[n].") for each in found] == [
        "AuthorizationRules[a].Rights",
        "AuthorizationRules[a].Rights",
        "Queues[q].Properties.LockDuration",
        "Queues[q].Properties.MaxDeliveryCount",
        "Topics[t].Subscriptions[s].Rules[r].Properties.FilterType",
        "Topics[t].Subscriptions[s].Rules[r].Properties.FilterType",
        "Topics[t].Odd",
    ]


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({"FilterType": "Sql", "SqlFilter": {"SqlExpression": "a +"}}, "'a +' is not understood"),
        ({"FilterType": "Correlation", "CorrelationFilter": {"Size": 1}}, "has no property Size"),
        ({"FilterType": "Correlation", "CorrelationFilter": {}}, "at least one property"),
        ({"FilterType": "Magic"}, "must be Sql or Correlation, not 'Magic'"),
    ],
)
def test_a_filter_that_cannot_be_honoured_is_refused(rule: dict[str, Any], problem: str) -> None:
    subscription = {"Name": "s", "Rules": [{"Name": "r", "Properties": rule}]}
    [found] = problems(lambda: parse(Topics=[{"Name": "t", "Subscriptions": [subscription]}]))
    assert problem in found


def test_a_subscription_has_a_rule_once() -> None:
    every = {"FilterType": "Sql", "SqlFilter": {"SqlExpression": "1=1"}}
    rules = [{"Name": name, "Properties": every} for name in ("r", "s", "R")]
    topic = {"Name": "t", "Subscriptions": [{"Name": "s", "Rules": rules}]}
    [found] = problems(lambda: parse(Topics=[topic]))
    assert "R is there twice" in found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not readable as JSON"),
        ('{"a": 1, "a": 2}', "not readable as JSON"),
        ("[]", "the file: must be an object, not a list"),
        ("{}", "UserConfig.Namespaces: must hold exactly one namespace, not 0"),
        (
            '{"UserConfig": {"Namespaces": [{"Name": "a"}, {"Name": "b"}]}}',
            "UserConfig.Namespaces: must hold exactly one namespace, not 2",
        ),
        ('{"UserConfig": {"Namespaces": [{}]}}', "UserConfig.Namespaces[0].Name: is missing"),
        ('{"UserConfig": {"Namespaces": {}}}', "UserConfig.Namespaces: must be a list, not an object"),
    ],
)
def test_a_file_of_another_shape(text: str, problem: str) -> None:
    assert any(each.startswith(problem) for each in problems(lambda: Configuration.parse(text)))


def queue(name: str, **properties: str) -> dict[str, Any]:
    return {"Name": name, "Properties": properties}


@pytest.mark.parametrize(
    ("queues", "problem"),
    [
        ([queue("a", ForwardTo="b")], "a.ForwardTo: there is no queue or topic b"),
        (
            [queue("a", ForwardDeadLetteredMessagesTo="b")],
            "a.ForwardDeadLetteredMessagesTo: there is no queue or topic b",
        ),
        (
            [queue("a", ForwardDeadLetteredMessagesTo="A")],
            "a.ForwardDeadLetteredMessagesTo: forwards to itself",
        ),
        (
            [queue("a", ForwardTo="b"), queue("b", ForwardTo="a")],
            "a.ForwardTo: forwards more than 4 times, or in a circle",
        ),
        (
            [*(queue(f"q{number}", ForwardTo=f"q{number + 1}") for number in range(5)), queue("q5")],
            "q0.ForwardTo: forwards more than 4 times, or in a circle",
        ),
        (
            [queue("a"), queue("A")],
            "UserConfig.Namespaces[n]: A is there twice (names differ by more than case)",
        ),
    ],
)
def test_entities_that_do_not_fit_together(queues: list[dict[str, Any]], problem: str) -> None:
    assert problem in problems(lambda: parse(Queues=queues))


def test_keys_and_roles_belong_to_their_scope() -> None:
    configuration = Configuration.parse(
        """{"UserConfig": {"Namespaces": [{"Name": "n",
          "Queues": [{"Name": "q",
            "AuthorizationRules": [{"Name": "s", "PrimaryKey": "k", "SecondaryKey": "l", "Rights": ["Send"]}],
            "RoleAssignments": [{"ClientId": "ABC", "Role": "sender"}]}],
          "RoleAssignments": [{"ClientId": "abc", "Role": "Owner"}]}]}}"""
    )
    assert configuration.sas_rules == (
        SasRule("s", ("k", "l"), Right.SEND, "q"),
        SasRule("RootManageSharedAccessKey", ("SAS_KEY_VALUE",), ALL_RIGHTS),
    )
    assert configuration.role_assignments == (
        RoleAssignment("abc", Role.OWNER),
        RoleAssignment("abc", Role.SENDER, "q"),
    )
    assert "k" not in repr(configuration.sas_rules[0]).replace("keys", "")


def test_a_rule_without_a_key_gets_a_random_one() -> None:
    (first, root), (second, _) = Configuration.load().sas_rules, Configuration.load().sas_rules
    assert (first.name, first.scope, root.name) == (
        "dataverse",
        "opportunity-won",
        "RootManageSharedAccessKey",
    )
    assert len(first.keys[0]) > 40
    assert first.keys != second.keys
