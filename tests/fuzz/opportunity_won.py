"""Fuzzes the reading of incoming events, guided by coverage (atheris); `make fuzz` runs it.

    python tests/fuzz/opportunity_won.py fuzz --inputs 1000000 --found build/fuzz
    coverage run --branch --source=shared tests/fuzz/opportunity_won.py replay build/fuzz

An input is a message in the format of tests/events/README.md, so that the corpus is what the fuzzer begins with and
whatever it finds can be read, and added to the corpus. `replay` reads inputs again without atheris, to measure
branches or to look at a crash.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "events"
ORGANIZATION = "5d4c2c4e-0c5e-4c1a-9b1e-3f6d5f0a1b2c"
GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
DESCRIPTION = re.compile(r"[ -~]{1,1000}")


def judge(body: bytes, properties: Mapping[str, object], content_type: str | None) -> str:
    """Read a message and return the kind of answer; raise AssertionError for one that is none of the three."""
    free = _answer(body, properties, content_type, None)
    bound = _answer(body, properties, content_type, ORGANIZATION)
    if bound[0] != "OtherOrganization":
        assert bound == free, "the setting changes nothing else"
        assert bound[0] != "OpportunityWon" or bound[1].organization_id in {None, ORGANIZATION}
    return bound[0]


def _answer(
    body: bytes, properties: Mapping[str, object], content_type: str | None, setting: str | None
) -> tuple[str, Any]:
    # Imported late: the fuzzer instruments the modules while they are imported.
    errors = importlib.import_module("shared.errors")
    module = importlib.import_module("shared.opportunity_won")
    try:
        answer = module.parse_event(body, properties, content_type, organization_id=setting)
    except (errors.InvalidEvent, errors.OtherOrganization) as error:
        answer = error
    if isinstance(answer, errors.ParkNow):
        assert DESCRIPTION.fullmatch(answer.description), "a description is one line of plain text"
        return type(answer).__name__, answer.description
    if isinstance(answer, module.Ignored):
        assert DESCRIPTION.fullmatch(answer.reason), "a log line is one line of plain text"
        return "Ignored", answer.reason
    assert isinstance(answer, module.OpportunityWon), "three answers and no other"
    assert GUID.fullmatch(answer.opportunity_id), "an id is a GUID in lower case with hyphens"
    assert DESCRIPTION.fullmatch(answer.shape), "a shape is one line of plain text"
    copy = module.parse_event(module.compact_event(answer), {}, "application/json", organization_id=setting)
    assert copy == answer, "the compact form is read back to the same win"
    return "OpportunityWon", answer


def message_of(data: bytes) -> tuple[bytes, dict[str, object], str | None]:
    """Return body, properties and content type of any bytes, in the corpus's format as far as they keep to it."""
    head, _, body = data.partition(b"\n\n")
    properties: dict[str, object] = {}
    content_type = None
    for line in head.decode(errors="surrogateescape").split("\n"):
        header, _, value = line.partition(": ")
        name, _, text = value.partition(" = ")
        if header == "Property":
            properties[name] = text
        elif header == "Property-Bytes":
            properties[name] = text.encode(errors="surrogateescape")
        elif header == "Content-Type":
            content_type = value
    return body, properties, content_type


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Fuzz the reading of incoming events.")
    commands = parser.add_subparsers(dest="command", required=True)
    fuzz = commands.add_parser("fuzz")
    fuzz.add_argument("--inputs", type=int, default=1_000_000)
    fuzz.add_argument("--found", type=Path, required=True, help="folder for inputs that reach something new")
    fuzz.add_argument("--seed", type=int, default=1)
    replay = commands.add_parser("replay")
    replay.add_argument("found", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    if options.command == "replay":
        _replay(options.found)
    else:
        _fuzz(options.inputs, options.seed, options.found)


def _replay(found: list[Path]) -> None:
    files = [file for place in found for file in (sorted(place.iterdir()) if place.is_dir() else [place])]
    answers = [judge(*message_of(file.read_bytes())) for file in files]
    for answer in sorted(set(answers)):
        sys.stdout.write(f"{answers.count(answer):6} {answer}\n")


def _fuzz(inputs: int, seed: int, found: Path) -> None:
    # By name: it is not installed everywhere.
    try:
        atheris = importlib.import_module("atheris")
    except ModuleNotFoundError:
        sys.exit("The fuzzer, atheris, comes as a wheel only for Linux on x86-64 and Python 3.11 to 3.13.")
    with atheris.instrument_imports(include=["shared"]):
        importlib.import_module("shared.opportunity_won")
    found.mkdir(parents=True, exist_ok=True)
    atheris.Setup(
        [
            sys.argv[0],
            f"-runs={inputs}",
            f"-seed={seed}",
            "-max_len=32768",
            "-timeout=5",
            "-print_final_stats=1",
            "-verbosity=1",
            f"-dict={Path(__file__).with_suffix('.dict')}",
            f"-artifact_prefix={found.parent}/crash-",
            str(found),
            str(CORPUS),
        ],
        lambda data: judge(*message_of(data)) and None,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
