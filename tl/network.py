"""Whether an address can be reached at all, before a client of it retries for most of a minute."""

from __future__ import annotations

import socket
import urllib.request
from functools import cache
from urllib.parse import urlsplit

from tl.cache import offline


@cache
def unreachable(url: str) -> str:
    """Return why the host of `url` can't be reached, or an empty string. A process tries each address once.

    Without a network, hub clients retry for most of a minute; this function answers at once.
    """
    if offline():
        return "TL_OFFLINE is set"
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    if not parts.hostname or parts.scheme in proxies or "all" in proxies:
        return ""
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=5).close()
    except OSError as error:
        return f"{parts.hostname} can't be reached ({error.strerror or error})"
    return ""
