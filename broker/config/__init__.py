"""Every setting in one place (`settings`), and how TOML, variables and flags become it (`load`)."""

from .load import load
from .settings import (
    Access,
    Http,
    Key,
    Kind,
    Limits,
    Log,
    Memory,
    Settings,
    Shutdown,
    Stomp,
    Storage,
    keys,
    show,
    toml,
)
from .units import Address

__all__ = [
    "Access",
    "Address",
    "Http",
    "Key",
    "Kind",
    "Limits",
    "Log",
    "Memory",
    "Settings",
    "Shutdown",
    "Stomp",
    "Storage",
    "keys",
    "load",
    "show",
    "toml",
]
