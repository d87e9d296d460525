"""Addresses of files: on this machine, or behind a protocol such as s3://."""

import re

_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_remote(path: str) -> bool:
    """Whether `path` is an address with a protocol, not a file's name."""
    return bool(_PROTOCOL.match(path))
