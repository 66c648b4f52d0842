"""What runs from `start` to `stop`, as a context manager."""

from abc import ABC, abstractmethod
from typing import Self


class StartStop(ABC):
    """A part that is started on entering its context, and stopped on leaving it."""

    @abstractmethod
    def start(self) -> None:
        """Start it."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
