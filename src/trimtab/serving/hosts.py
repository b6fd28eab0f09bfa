"""Which names are this machine's own. It needs no package, for the command line asks before it has one."""

from __future__ import annotations

import ipaddress

ANY = "*"
"""Stands for every name."""


def is_loopback(name: str) -> bool:
    """Whether a host's name or address is this machine's own, for itself alone."""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
