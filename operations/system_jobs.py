"""What Dataverse's system jobs say: they post the wins, and repeat what fails."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from operations.web_api import Row

_SECRETS = re.compile(r"(sig|SharedAccessKey|SharedAccessSignature)=[^&;\s]+", re.IGNORECASE)


def job_message(job: Row) -> str:
    """Return what a system job says, in one line and without signatures."""
    text = " ".join(str(job.get("message") or job.get("friendlymessage") or "no message").split())
    return _SECRETS.sub(r"\1=…", text)[:200]
