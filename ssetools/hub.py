"""The Hugging Face libraries: whether their hub is there, and how to keep them quiet.

Whether the hub can be reached is asked once, so that an offline machine gets an answer in seconds and not minutes.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Iterator
from urllib.parse import urlparse
from urllib.request import getproxies


@functools.cache
def hub_reachable() -> bool:
    """Says whether the hub's name resolves, or a proxy is named that would resolve it.

    If neither, hub libraries are told to use their caches and not retry.
    """
    import huggingface_hub.constants as hub

    if hub.HF_HUB_OFFLINE:
        return False
    if "https" in getproxies():  # which look the name up themselves
        return True
    host = urlparse(hub.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        hub.HF_HUB_OFFLINE = True
        import datasets

        datasets.config.HF_HUB_OFFLINE = True
        return False
    return True


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' progress bars and advice; errors still raise."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Silences the progress bars of `datasets`."""
    from datasets.utils import logging as datasets_logging

    bars = datasets_logging.is_progress_bar_enabled()
    datasets_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            datasets_logging.enable_progress_bar()
