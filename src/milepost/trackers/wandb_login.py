"""Will W&B find a login without asking for one?"""

from __future__ import annotations

import netrc
import os
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from milepost.core.events import Noticed

__all__ = ["has_login", "offline_notice"]


def has_login(settings: Any) -> bool:
    """Whether there is a login where W&B looks for one; ``settings`` are W&B's."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    return bool(settings.api_key) or _in_netrc(urlsplit(settings.base_url).netloc)


def offline_notice(folder: str) -> Noticed:
    """What a person should know of a run that stays in ``folder``."""
    return Noticed(
        source="wandb",
        topic="offline",
        message=f"W&B has no login here: the run stays in {folder}",
        cure=f"run wandb login, then wandb sync {folder}",
    )


def _in_netrc(host: str) -> bool:
    candidates = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for path in map(os.path.expanduser, candidates):
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(path).authenticators(host):
                return True
    return False
