"""Is the Hugging Face hub there? Asked once, so that an offline machine gets an answer in seconds, not minutes."""

from __future__ import annotations

import functools
import socket
from urllib.parse import urlparse


@functools.cache
def hub_reachable() -> bool:
    """Says whether the hub's name resolves; if not, hub libraries are told to use their caches and not retry."""
    import huggingface_hub.constants as hub

    if hub.HF_HUB_OFFLINE:
        return False
    host = urlparse(hub.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        hub.HF_HUB_OFFLINE = True
        import datasets

        datasets.config.HF_HUB_OFFLINE = True
        return False
    return True
