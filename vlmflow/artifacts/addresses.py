"""Addresses of files: local paths, or URLs with a protocol such as s3://."""

import re

_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_remote(path: str) -> bool:
    """Return whether `path` is a URL with a protocol, not a local path."""
    return bool(_PROTOCOL.match(path))
