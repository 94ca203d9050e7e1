"""The lines that the Python clients read and print (README.md in this folder)."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Letter:
    """One message to send."""

    destination: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Broker:
    """Where to connect, and as whom."""

    port: int
    login: str
    passcode: str
    version: str
    host: str  # the virtual host to ask for; empty: what the library does by itself


def broker() -> Broker:
    """What the environment says."""
    login, passcode, version = (os.environ[f"STOMP_{name}"] for name in ("LOGIN", "PASSCODE", "VERSION"))
    return Broker(int(os.environ["STOMP_PORT"]), login, passcode, version, os.environ.get("STOMP_VHOST", ""))


def letters() -> Iterator[Letter]:
    """What stdin says is to be sent."""
    for line in sys.stdin:
        entry = json.loads(line)
        yield Letter(entry["destination"], entry["headers"], base64.b64decode(entry["body"]))


def show(headers: Mapping[str, str], body: bytes | str | None) -> None:
    """Print one message that came."""
    raw = body.encode() if isinstance(body, str) else body or b""
    entry = {"headers": dict(headers), "body": base64.b64encode(raw).decode()}
    print(json.dumps(entry), flush=True)
