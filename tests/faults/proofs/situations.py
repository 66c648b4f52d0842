"""What a history is about: each situation draws its opportunities, what users do, and what fails.

Most histories are of the mixed kind, where everything meets everything. The others have what needs hours, or must be
alone to be judged exactly. What the acts do is left to `history`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from proofs.checker import Cause, Refusal
from proofs.history import LAST_FAULT
from proofs.random_faults import draw_rule
from proofs.refusals import OUTAGES, REFUSALS, REJECTIONS
from sandbox.faults import Fault, FaultKind, When
from sandbox.faults.syntax import parse_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from proofs.history import History
    from proofs.refusals import ErrorResponse
    from proofs.scenario import Scenario

# What may happen between check and call, and how often it is made to.
_AT_THE_WORST_MOMENT = frozenset(
    {"create invoice", "delete note", "reopen", "reopen and win again", "reopen and lose", "order"}
)
_WORST_SHARE = 0.4
# Each may cost a delivery, and a message has ten.
_MAX_LOST_DELIVERIES = 5
# A share of the histories in which something keeps the function from assigning invoices.
_IMPEDED_SHARE = 0.15


@dataclass(frozen=True)
class Situation:
    """A kind of history: how often it is drawn, the settings of the function, and how it begins."""

    name: str
    weight: int
    begin: Callable[[History], None]
    settings: Callable[[Random], Mapping[str, str]] = lambda _: {}


def draw_situation(random: Random) -> Situation:
    """Draw what a history is about."""
    return random.choices(SITUATIONS, [situation.weight for situation in SITUATIONS])[0]


# ---------------------------------------------------------------------------------------------- everything mixed


def _mixed_settings(random: Random) -> Mapping[str, str]:
    # With a short bound, what fails for good is parked and replayed while the broker remembers the first message's id.
    return {"RETRY_RECORD_SECONDS": "90"} if random.random() < 0.3 else {}


def _mixed(history: History) -> None:
    random = history.random
    if random.random() < _IMPEDED_SHARE:
        history.impede_assignments()
    for scenario in history.opportunities(random.choice((1, 1, 1, 2))):
        _draw_scenario(history, scenario)
    _draw_foreign_messages(history)
    _draw_faults(history)


def _draw_scenario(history: History, scenario: Scenario) -> None:
    """Draw what happens to one opportunity."""
    scenarios = {
        _plain: 46,
        _won_again: 14,
        _changed_by_user: 20,
        _posted_before_commit: 5,
        _rolled_back: 3,
        _invoiced_or_ordered_before: 4,
        _order_canceled_before: 5,
        _reported_unreadably: 3,
    }
    draw = history.random.choices(list(scenarios), list(scenarios.values()))[0]
    history.world.counts[f"scenario: {draw.__name__.strip('_').replace('_', ' ')}"] += 1
    draw(history, scenario)


def _win(history: History, scenario: Scenario, turn: int | None = None) -> None:
    turn = history.random.randint(0, 8) if turn is None else turn
    history.act("win", turn, lambda: history.win(scenario))


def _plain(history: History, scenario: Scenario) -> None:
    """Users do nothing that matters."""
    random, users = history.random, history.users
    _win(history, scenario)
    acts: tuple[tuple[str, float, Callable[[Scenario], bool]], ...] = (
        ("reassign opportunity", 0.15, users.reassign_opportunity),
        ("reassign invoice", 0.15, users.reassign_invoice),
        ("correct invoice", 0.1, users.correct_invoice),
        ("report the win again", 0.2, lambda scenario: history.report_win(scenario.id)),
    )
    for name, chance, do in acts:
        if random.random() < chance:
            history.act(name, random.randint(0, 60), functools.partial(do, scenario))


def _won_again(history: History, scenario: Scenario) -> None:
    """Reopened, changed or not, and won again: mostly after it was published, sometimes at any moment."""
    random, world = history.random, history.world
    what = random.choice(("amount", "amount", "currency", "customer", "name", "nothing"))
    waits = random.random() < 0.7
    scenario.won_again = True
    scenario.reasons.add("InvoiceOutdated")
    _win(history, scenario)

    def reopen() -> bool:
        is_time = (
            world.watch.has_published(scenario.id) or world.simulation.monotonic() >= LAST_FAULT or not waits
        )
        if not is_time or not history.reopen(scenario):
            return False
        history.users.change_terms(scenario, what)
        world.simulation.at(random.randint(2, 90), lambda: history.win(scenario))
        return True

    history.act(f"reopen, change the {what}, win again", random.randint(0, 40), reopen, scenario.id)


def _changed_by_user(history: History, scenario: Scenario) -> None:
    random = history.random
    _win(history, scenario)
    for _ in range(random.choice((1, 1, 2, 3))):
        _draw_change(history, scenario)


def _draw_change(history: History, scenario: Scenario) -> None:
    random, users = history.random, history.users
    acts: dict[str, Callable[[Scenario], bool]] = {
        "create invoice": users.create_invoice,
        "delete invoice": users.delete_invoice,
        "cancel invoice": users.cancel_invoice,
        "delete note": users.delete_note,
        "reopen": history.reopen,
        "reopen and win again": lambda scenario: history.reopen(scenario) and _win_later(history, scenario),
        "reopen and lose": lambda scenario: history.reopen(scenario) and history.lose(scenario),
        "order": users.order,
        "reassign invoice": users.reassign_invoice,
    }
    name = random.choice(list(acts))
    do = functools.partial(acts[name], scenario)
    if name == "reopen and win again":
        # An invoice that was made by hand beside the claim may differ from the opportunity.
        scenario.reasons.add("InvoiceOutdated")
    if name in _AT_THE_WORST_MOMENT and random.random() < _WORST_SHARE:
        # Once the function has checked, and before it calls; at the latest when all is quiet.
        checked, now = history.world.checks.checked, history.world.simulation.monotonic

        def at_the_worst_moment() -> bool:
            return (checked(scenario.id) or now() >= LAST_FAULT) and do()

        history.act(name, 0, at_the_worst_moment, scenario.id)
    else:
        history.act(name, random.randint(0, 50), do, scenario.id)


def _win_later(history: History, scenario: Scenario) -> bool:
    """Win at once, or some seconds later."""
    if history.random.random() < 0.5:
        return history.win(scenario)
    history.world.simulation.at(history.random.randint(1, 30), lambda: history.win(scenario))
    return True


def _posted_before_commit(history: History, scenario: Scenario) -> None:
    """Post before the transaction commits, like a synchronous step."""
    history.act("post before the win is committed", 0, lambda: history.report_win(scenario.id))
    history.world.simulation.at(history.random.randint(5, 60), lambda: history.users.commit_win(scenario))


def _rolled_back(history: History, scenario: Scenario) -> None:
    scenario.never = True
    history.act("post of a win that is rolled back", 0, lambda: history.report_win(scenario.id))


def _invoiced_or_ordered_before(history: History, scenario: Scenario) -> None:
    scenario.never = True
    if history.random.random() < 0.5:
        # The event is about the invoice that exists, by whomever it was created.
        history.act("create invoice before the win", 0, lambda: history.users.create("invoice", scenario))
    else:
        history.act("order before the win", 0, lambda: history.users.order(scenario))
    _win(history, scenario, 1)


def _order_canceled_before(history: History, scenario: Scenario) -> None:
    """Cancel an order, which then bills nothing; another one that is not canceled does."""
    is_second_active = history.random.random() < 0.3

    def order_and_cancel() -> bool:
        history.users.order_and_cancel(scenario)
        if is_second_active:
            scenario.never = True
            history.users.order(scenario)
        return True

    history.act("order and cancel it before the win", 0, order_and_cancel)
    _win(history, scenario, 1)


def _reported_unreadably(history: History, scenario: Scenario) -> None:
    """Report a win only by a message that the function cannot read: it is parked as it came."""
    scenario.changed_by_user = True
    scenario.reasons.add("InvalidEvent")

    def send() -> bool:
        history.users.commit_win(scenario)
        return history.send(b"\xff\xfe<win of " + scenario.id.encode() + b">\x00")

    history.act("report a win in a form that cannot be read", 0, send)


def _draw_foreign_messages(history: History) -> None:
    """Messages that cannot be handled, each with its own reason."""
    random, world = history.random, history.world
    if random.random() < 0.05:
        mark = f"not json {random.getrandbits(32)}".encode()
        history.causes.append(Cause(mark, frozenset({"InvalidEvent"})))
        history.act(
            "send what cannot be read", random.randint(0, 10), lambda: history.send(mark + b"\xe9 \n")
        )
    if random.random() < 0.05:
        nobody = world.new_id()
        history.causes.append(Cause(nobody.encode(), frozenset({"OpportunityNotFound"})))
        history.act("win of no opportunity", random.randint(0, 10), lambda: history.report_win(nobody))
    if random.random() < 0.05:
        id_ = next(iter(history.scenarios))
        other = world.new_id()
        history.causes.append(Cause(other.encode(), frozenset({"OtherOrganization"})))
        body = f'{{"opportunityId": "{id_}", "organizationId": "{other}"}}'.encode()
        history.act("win of another organization", random.randint(0, 10), lambda: history.send(body))


def _draw_faults(history: History) -> None:
    random = history.random
    budget = _MAX_LOST_DELIVERIES
    is_brief = "RETRY_RECORD_SECONDS" in history.settings
    for _ in range(random.choice((0, 1, 1, 2, 3, 4))):
        rule, deliveries = draw_rule(random)
        # With a short bound, a missing opportunity soon is a permanent cause.
        lasts = is_brief and rule.fault.error_code == "0x80040217"
        if deliveries <= budget and not lasts:
            budget -= deliveries
            history.world.plan.add(rule)
    if random.random() < 0.1 and budget:
        history.act("host crash", random.randint(3, 40), history.crash)


# ---------------------------------------------------------------------------------------------- parked and replayed


def _locked_out(history: History) -> None:
    """Nobody has created the application user: everything is parked. Then it is created, and everything replayed."""
    plan = history.world.plan
    plan.add(parse_rule("dataverse forbidden"))
    scenarios = history.opportunities(history.random.choice((1, 1, 2)))

    def fix() -> bool:
        if not all(map(history.all_parked, scenarios)):
            return False
        plan.clear()
        return sum(map(history.replay_into_a_fault, scenarios)) > 0

    for scenario in scenarios:
        _win(history, scenario, 0)
    history.act("create the application user and replay", 0, fix)


def _refused_settings(random: Random) -> Mapping[str, str]:
    record = {"RETRY_RECORD_SECONDS": "90"} if random.random() < 0.3 else {}
    return {**record, "RETRY_OUTAGE_SECONDS": "7200"}


def _refused(history: History) -> None:
    """Dataverse or a plug-in refuses for good, in one of the documented ways; fixed and replayed, or not."""
    random, world = history.random, history.world
    scenario = history.opportunities(1)[0]
    error = random.choice(random.choice((REFUSALS, REFUSALS, REFUSALS, OUTAGES, REJECTIONS)))
    plan = world.add_plug_in(scenario.id, _fault_of(error, random), When())
    world.counts[f"refusal: {error.reason}"] += 1
    world.counts[f"refusal: with status {error.status}"] += 1
    _win(history, scenario, 0)
    if random.random() < 0.5:
        scenario.changed_by_user = True
        scenario.reasons.add(error.reason)
        bound = float(history.settings.get("RETRY_RECORD_SECONDS", 3600))
        after = 7200.0 if error.is_outage else 0.0 if error in REJECTIONS else bound
        history.refusals.append(Refusal(scenario.id, error.reason, error.text, timedelta(seconds=after)))
        return

    def fix() -> bool:
        if not history.all_parked(scenario):
            return False
        plan.clear()
        return history.replay_into_a_fault(scenario)

    history.act("fix the cause and replay", 0, fix)


def _fault_of(error: ErrorResponse, random: Random) -> Fault:
    part, stop = random.choice(((None, None), (0, None), (0, None), (0, 200), (0, 400)))
    if error.code == "" and part is None and error.status in (401, 403, 404):
        part = 0
    source = random.choice(("", "Contoso.CreditCheck"))
    return Fault(
        FaultKind.ERROR,
        status=error.status,
        code=error.code,
        text=error.text,
        part=part,
        stop=stop,
        source=source,
    )


# ---------------------------------------------------------------------------------------------- hours


def _ids_reused(history: History) -> None:
    """Use one message id again and again, more than 10 minutes apart, while Dataverse is down for hours."""
    random, world = history.random, history.world
    history.faults_end = False
    sender_id = random.choice((random.choice(history.organization.demo.accounts), "1", "daily report"))
    world.message_id = lambda: sender_id
    gap = random.choice((random.uniform(601, 800), random.uniform(601, 800), random.uniform(3600, 4 * 3600)))
    for number, scenario in enumerate(history.opportunities(4)):
        world.simulation.at(number * gap, functools.partial(_commit_and_report, history, scenario))
    starts, lasts = random.choice((0.0, 300.0)), random.uniform(2, 8)
    fault = random.choice(("unavailable", "refuse", "admin-mode"))
    world.plan.add(parse_rule(f"dataverse {fault} from={starts}s for={lasts}h"))


def _commit_and_report(history: History, scenario: Scenario) -> None:
    history.users.commit_win(scenario)
    history.report_win(scenario.id)
    history.world.counts["messages with an id that was used before"] += 1


def _plug_in_throttles(history: History) -> None:
    """Let a plug-in refuse one record with 429 and no Retry-After, for hours: the others do not notice."""
    random, world = history.random, history.world
    history.faults_end = False
    throttled, *others = history.opportunities(4)
    fault = Fault(
        FaultKind.ERROR,
        status=429,
        code=random.choice(("0x80048d04", "0x80040265", "")),
        text="Slow down.",
        part=0,
    )
    world.add_plug_in(throttled.id, fault, When.during(timedelta(hours=random.choice((1, 3)))))
    _win(history, throttled, 0)
    for scenario in others:
        world.simulation.at(random.randint(1, 45), functools.partial(history.win, scenario))
        history.prompt.add(scenario.id)
        history.max_retries[scenario.id] = 0
    # Each step that is registered has a message of its own.
    history.max_retries[throttled.id] = 3 * 35


def _identity_away(history: History) -> None:
    """Few wins, hours apart, and an identity endpoint that fails in between: the token that is valid is used."""
    random, world = history.random, history.world
    history.faults_end = False
    first, *others = history.opportunities(3)
    _win(history, first, 0)
    # A token is valid for a day at most, and may be as old as that.
    lasts = world.shape.token_lifetime.total_seconds()
    starts = random.uniform(0.01, 0.5) * lasts
    fault = random.choice(("silent", "unavailable"))
    world.plan.add(parse_rule(f"identity {fault} from={starts}s for={lasts * 0.98 - starts}s"))
    # With more workers, one of them may have no token yet.
    is_prompt = world.shape.workers == 1
    for scenario in others:
        world.simulation.at(
            random.uniform(starts + 60, lasts * 0.97), functools.partial(history.win, scenario)
        )
        if is_prompt:
            history.prompt.add(scenario.id)
            history.max_retries[scenario.id] = 0


SITUATIONS = (
    Situation("everything mixed", 68, _mixed, _mixed_settings),
    Situation("locked out", 3, _locked_out, lambda _: {"RETRY_OUTAGE_SECONDS": "600"}),
    Situation("refused", 12, _refused, _refused_settings),
    Situation("a sender reuses ids", 7, _ids_reused),
    Situation("a plug-in throttles its record", 5, _plug_in_throttles),
    Situation("the identity fails at low traffic", 5, _identity_away),
)
