"""A program that runs beside the sandbox."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Self

import click

_STOP_SECONDS = 5.0


class Beside:
    """Runs a command from entering the context to leaving it, with more settings in its environment.

    What it prints goes where the sandbox prints, unless it is silent. `name` is what messages call it.
    """

    def __init__(
        self, command: Sequence[str], settings: Mapping[str, str], *, name: str, silent: bool = False
    ) -> None:
        self._command = command
        self._environment = {**os.environ, **settings}
        self._name = name
        self._output = subprocess.DEVNULL if silent else None

    def __enter__(self) -> Self:
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the caller's own command
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=self._output
            )
        except OSError as error:
            raise click.ClickException(f"{self._name} does not start: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
