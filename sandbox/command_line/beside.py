"""A command that runs beside the sandbox, with the operator's settings and the control address in its environment."""

import os
import shlex
import subprocess
from typing import Self

import click

from sandbox.cloud import Cloud
from sandbox.control.client import CONTROL_TOKEN, CONTROL_URL, Control

_STOP_SECONDS = 5.0


class Beside:
    """Runs the command from entering the context to leaving it. What it prints goes where the sandbox prints."""

    def __init__(self, command: str, cloud: Cloud, control: Control) -> None:
        self._command = shlex.split(command)
        self._environment = {
            **os.environ,
            **cloud.operator_settings,
            CONTROL_URL: control.url,
            CONTROL_TOKEN: control.token,
        }

    def __enter__(self) -> Self:
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the caller's own command
                self._command, env=self._environment, stdin=subprocess.DEVNULL
            )
        except OSError as error:
            raise click.ClickException(f"{self._command[0]} does not start: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
