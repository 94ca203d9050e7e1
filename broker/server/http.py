"""The HTTP listener: one strict request per connection (reliability.md 4.3.1). This version serves health only."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, cast

from broker.admin import Phase, answer

LINE_MAX: Final = 2048  # bytes
HEAD_MAX: Final = 8192  # bytes
HEADERS_MAX: Final = 40
DEADLINE: Final = 10.0  # s for the whole exchange
_LINE: Final = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.[01]")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")


class BadRequest(Exception):
    """What is wrong with a request, as the status that it gets."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


def parse(head: bytes) -> tuple[str, str]:
    """(method, path without query) of a request's head, its empty line left off. Raises BadRequest."""
    lines = head.split(b"\r\n")
    if any(b"\n" in line or b"\r" in line for line in lines):
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    if len(lines[0]) > LINE_MAX:
        raise BadRequest(HTTPStatus.REQUEST_URI_TOO_LONG)
    request = _LINE.fullmatch(lines[0])
    if request is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    if len(lines) - 1 > HEADERS_MAX:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    for line in lines[1:]:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise BadRequest(HTTPStatus.BAD_REQUEST)
        name = header[1].lower()
        if name == b"transfer-encoding":
            raise BadRequest(HTTPStatus.NOT_IMPLEMENTED)
        if name == b"content-length" and header[2].strip() != b"0":
            raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return request[1].decode(), request[2].decode().partition("?")[0]


class HttpConnection(asyncio.Protocol):
    def __init__(self, phase: Callable[[], Phase], open_now: set[HttpConnection], most: int) -> None:
        self._phase = phase
        self._open = open_now
        self._most = most
        self._head = b""
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._timer = asyncio.get_running_loop().call_later(DEADLINE, self._transport.abort)
        self._open.add(self)
        if len(self._open) > self._most:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        self._open.discard(self)

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._head += data
        head, end, _ = self._head.partition(b"\r\n\r\n")
        try:
            if len(head) > HEAD_MAX:
                raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            if not end:
                return
            method, path = parse(head)
            if method not in ("GET", "HEAD"):
                raise BadRequest(HTTPStatus.METHOD_NOT_ALLOWED)
            status, text = answer(path, self._phase())
        except BadRequest as error:
            method, status, text = "GET", error.status, error.status.phrase.lower()
        body = text.encode() + b"\n"
        self._transport.write(
            b"HTTP/1.1 %d %b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
            b"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n%b"
            % (status, status.phrase.encode(), len(body), b"" if method == "HEAD" else body)
        )
        self._transport.close()
