"""The commands that talk to the running sandbox: win, break, watch."""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import click

from sandbox.control.client import CallFailed, Control, NoSandbox
from sandbox.stopping import Stop

_NO_SANDBOX = 3
_WAIT_SECONDS = 1
# Of a body, on a terminal; --json has all of it.
_MAX_SHOWN = 200
# Each retry is a child of the attempt before it, and there may be hundreds.
_MAX_INDENT = 60
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Seconds(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:  # noqa: ANN401 - click's signature
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value))
        if match is None:
            self.fail(f"{value!r} is not a duration such as 30s, 5m, 2h or 1d", param, context)
        return float(match[1]) * _UNITS[match[2]]


def _controlling(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its `control`, and the options that all of these commands have."""

    @click.option(
        "--pid", type=int, help="The process id of the sandbox, where several run.  [default: the newest]"
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
    @functools.wraps(command)
    def with_control(*, pid: int | None, **parameters: Any) -> None:  # noqa: ANN401 - what click passes on
        try:
            command(control=Control.find(pid), **parameters)
        except (NoSandbox, CallFailed) as error:
            click.echo(f"Error: {error}", err=True)
            raise click.exceptions.Exit(_NO_SANDBOX if isinstance(error, NoSandbox) else 1) from error

    return with_control


def _print(content: object, lines: Iterator[str] | Sequence[str], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    for line in lines:
        click.echo(line)


# --- selling ---


@click.command("win")
@click.argument("what", nargs=-1, metavar="[NAME|ID|COUNT]...")
@_controlling
def win_command(control: Control, what: Sequence[str], *, as_json: bool) -> None:
    """Win opportunities: by name, a part of it or id; or so many of the open ones, one unless a count is given."""
    won = control.call("POST", "/win", _chosen(what))
    _print(won, [f"won: {_line(each)}" for each in won], as_json=as_json)


@click.command("lose")
@click.argument("what", nargs=-1, required=True, metavar="NAME|ID...")
@_controlling
def lose_command(control: Control, what: Sequence[str], *, as_json: bool) -> None:
    """Lose open opportunities."""
    lost = control.call("POST", "/lose", {"opportunities": list(what)})
    _print(lost, [f"lost: {_line(each)}" for each in lost], as_json=as_json)


@click.command("reopen")
@click.argument("what", nargs=-1, required=True, metavar="NAME|ID...")
@_controlling
def reopen_command(control: Control, what: Sequence[str], *, as_json: bool) -> None:
    """Open won or lost opportunities again."""
    opened = control.call("POST", "/reopen", {"opportunities": list(what)})
    _print(opened, [f"open: {_line(each)}" for each in opened], as_json=as_json)


@click.command("change")
@click.argument("what", nargs=-1, required=True, metavar="NAME|ID...")
@click.option("--price", type=float, help="The price of the line.")
@click.option("--quantity", type=float, help="The quantity of the line.")
@click.option("--line", type=click.IntRange(1), help="The number of the line.  [default: 1]")
@click.option("--freight", type=float, help="The freight amount.")
@click.option("--discount", type=float, help="The discount on the whole opportunity.")
@click.option("--currency", help="The code of the currency, such as USD.")
@_controlling
def change_command(control: Control, what: Sequence[str], *, as_json: bool, **change: object) -> None:
    """Change open opportunities: amounts and currency."""
    changed = control.call("POST", "/change", {"opportunities": list(what), **change})
    _print(changed, [f"changed: {_line(each)}" for each in changed], as_json=as_json)


def _chosen(what: Sequence[str]) -> dict[str, object]:
    if len(what) == 1 and what[0].isascii() and what[0].isdigit():
        return {"count": int(what[0])}
    return {"opportunities": list(what)}


def _line(row: Mapping[str, Any]) -> str:
    return f"{row['id']}  {row['name']}  {row['customer']}  {row['total']} {row['currency']}"


@click.command("opportunities")
@click.argument("search", default="")
@_controlling
def opportunities_command(control: Control, search: str, *, as_json: bool) -> None:
    """List the opportunities, or those whose name contains SEARCH."""
    rows = control.call("GET", "/opportunities", query={"search": search})
    lines = [f"{row['state'].ljust(4)}  {_line(row)}" for row in rows]
    _print(rows, lines or ["There is no such opportunity."], as_json=as_json)


@click.command("invoices")
@_controlling
def invoices_command(control: Control, *, as_json: bool) -> None:
    """List the invoices, the newest first."""
    rows = control.call("GET", "/invoices")
    amounts = [f"{row['total']} {row['currency']}" for row in rows]
    customers = [str(row["customer"]) for row in rows]
    # The ids come last: what follows them in a narrow terminal would make them hard to copy.
    lines = [
        f"{row['number']}  {amount.rjust(_width(amounts))}  {customer.ljust(_width(customers))}  {row['opportunity']}"
        for row, amount, customer in zip(rows, amounts, customers, strict=True)
    ]
    _print(rows, lines or ["There are no invoices."], as_json=as_json)


def _width(texts: Sequence[str]) -> int:
    return max(map(len, texts), default=0)


# --- watching ---


@click.command("status")
@_controlling
def status_command(control: Control, *, as_json: bool) -> None:
    """Show what runs, what is broken and how many messages wait where."""
    status = control.call("GET", "/status")
    _print(status, _status_lines(status), as_json=as_json)


def _status_lines(status: Mapping[str, Any]) -> Iterator[str]:
    yield f"Sandbox {status['pid']}: {status['app']}, {status['mode']}"
    for function in status["functions"]:
        yield f"Function {function['name']} receives from {function['source']}" + (
            " (disabled)" if function["disabled"] else ""
        )
    yield f"Workers: {', '.join(map(str, status['workers'])) or 'none is ready'}"
    if status["clockAheadSeconds"]:
        yield f"Service Bus's clock is {status['clockAheadSeconds'] / 3600:g} h ahead"
    if status["opportunities"]:
        yield "Opportunities: " + ", ".join(
            f"{count} {name}" for name, count in status["opportunities"].items()
        )
    for entity in status["entities"]:
        counts = (
            (entity["active"], "active"),
            (entity["scheduled"], "scheduled"),
            (entity["deadLetter"], "dead"),
        )
        shown = ", ".join(f"{count} {name}" for count, name in counts if count)
        yield f"{entity['path']}: {shown or 'empty'}"
    for fault in status["faults"]:
        yield f"Broken: {fault['rule']}" + (f" until {fault['until'][11:19]} UTC" if fault["until"] else "")


@click.command("events")
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C.")
@_controlling
@click.pass_obj
def events_command(stop: Stop, control: Control, *, follow: bool, as_json: bool) -> None:
    """Show what was published on the topics."""
    _watch(control, "/events", _event_line, stop, follow=follow, as_json=as_json)


def _event_line(event: Mapping[str, Any]) -> str:
    properties = event["applicationProperties"]
    about = event["subject"] or properties.get("cloudEvents_subject") or event["messageId"] or ""
    return f"{event['at'][11:19]}  {event['topic']}  {about}\n{' ' * 10}{_short(event['body'])}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}…"


@click.command("requests")
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C.")
@_controlling
@click.pass_obj
def requests_command(stop: Stop, control: Control, *, follow: bool, as_json: bool) -> None:
    """Show Dataverse's requests: who asked for what, and the status."""
    _watch(control, "/requests", _request_line, stop, follow=follow, as_json=as_json)


def _request_line(request: Mapping[str, Any]) -> str:
    head = f"{request['at'][11:19]}  {request['status']}  {request['client']}  {request['method']} {request['url']}"
    inner = [
        f"{' ' * 10}{each['status']}  {each['method']} {_path(each['url'])}" for each in request["operations"]
    ]
    return "\n".join([head, *inner])


def _path(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(scheme="", netloc="").geturl()


def _watch(
    control: Control,
    path: str,
    line: Callable[[Mapping[str, Any]], str],
    stop: Stop,
    *,
    follow: bool,
    as_json: bool,
) -> None:
    """Print entries; in JSON one document on each line."""
    last = 0
    while not stop.is_wanted():
        # A request that waits ends soon, so that Ctrl-C is noticed.
        entries = control.call("GET", path, query={"after": last, "wait": _WAIT_SECONDS if follow else 0})
        for entry in entries:
            last = entry["number"]
            click.echo(json.dumps(entry, ensure_ascii=False) if as_json else line(entry))
        if not follow:
            if not entries and not as_json:
                click.echo("There is nothing yet.")
            return


@click.command("traces")
@click.argument("opportunity", required=False)
@_controlling
def traces_command(control: Control, opportunity: str | None, *, as_json: bool) -> None:
    """Show the trees of spans, of one opportunity (an id) or of all; needs start --traces."""
    query = {"opportunity": opportunity} if opportunity else None
    spans = control.call("GET", "/traces", query=query)
    _print(spans, [_span_line(span) for span in spans] or ["There are no traces."], as_json=as_json)


def _span_line(span: Mapping[str, Any]) -> str:
    failure = f"  ERROR {span['error']}" if span["error"] else ""
    indent = "  " * min(span["depth"], _MAX_INDENT)
    return f"{indent}{span['name']}  {span['milliseconds']} ms  {span['service']}{failure}"


@click.command("messages")
@click.argument("entity")
@_controlling
def messages_command(control: Control, entity: str, *, as_json: bool) -> None:
    """Show the messages of a queue, TOPIC/Subscriptions/NAME or …/$DeadLetterQueue, without receiving them."""
    messages = control.call("GET", "/messages", query={"entity": entity})
    lines = [
        f"{each['sequenceNumber']}  {each['state']}  delivered {each['deliveryCount']} times  {_short(each['body'])}"
        for each in messages
    ]
    _print(messages, lines or [f"{entity} is empty."], as_json=as_json)


@click.command("send")
@click.argument("entity")
@click.argument("body")
@click.option("--content-type", help="Such as application/json.")
@click.option("--message-id", help="For duplicate detection.")
@click.option("--subject", help="For filters, and for the function.")
@click.option(
    "--property", "properties", multiple=True, metavar="NAME=VALUE", help="An application property."
)
@_controlling
def send_command(
    control: Control,
    entity: str,
    body: str,
    content_type: str | None,
    message_id: str | None,
    subject: str | None,
    properties: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """Send a message to a queue or topic."""
    sent = control.call(
        "POST",
        "/messages",
        {
            "entity": entity,
            "body": body,
            "contentType": content_type,
            "messageId": message_id,
            "subject": subject,
            "applicationProperties": dict(text.partition("=")[::2] for text in properties),
        },
    )
    _print(sent, [f"sent: sequence number {', '.join(map(str, sent['sequenceNumbers']))}"], as_json=as_json)


# --- breaking ---


@click.command("break")
@click.argument("rule")
@click.option(
    "--for", "seconds", type=_Seconds(), help="How long, such as 30s or 5m.  [default: until repair]"
)
@_controlling
def break_command(control: Control, rule: str, seconds: float | None, *, as_json: bool) -> None:
    """Let something fail by a RULE such as 'dataverse reset'; see faults."""
    broken = control.call("POST", "/faults", {"rule": rule, "seconds": seconds})
    _print(broken, [f"broken: {each['rule']}" for each in broken["faults"]], as_json=as_json)


@click.command("repair")
@_controlling
def repair_command(control: Control, *, as_json: bool) -> None:
    """End every fault."""
    repaired = control.call("DELETE", "/faults")
    _print(repaired, ["Nothing is broken."], as_json=as_json)


@click.command("kill")
@_controlling
def kill_command(control: Control, *, as_json: bool) -> None:
    """Kill the function's worker processes, as a crash would; others are started."""
    killed = control.call("POST", "/workers/kill")
    _print(killed, [f"killed: {', '.join(map(str, killed['killed'])) or 'none was ready'}"], as_json=as_json)


@click.command("pass-time")
@click.argument("duration", type=_Seconds())
@_controlling
def pass_time_command(control: Control, duration: float, *, as_json: bool) -> None:
    """Let time pass for Service Bus, such as 1h: retries become due, locks expire. No other clock moves."""
    moved = control.call("POST", "/clock", {"hours": duration / 3600})
    _print(moved, [f"Service Bus's clock shows {moved['now']}"], as_json=as_json)
