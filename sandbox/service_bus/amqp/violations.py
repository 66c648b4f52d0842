"""What the engine does when its peer breaks AMQP 1.0: end the link, the session or the connection."""


class Violation(Exception):
    """The peer broke the protocol; `condition` is the one that AMQP 1.0 defines for that."""

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(description)
        self.condition = condition
        self.description = description


class LinkViolation(Violation):
    """It ends the link."""


class SessionViolation(Violation):
    """It ends the session."""


class ConnectionViolation(Violation):
    """It ends the connection."""
