"""One TCP connection: bytes between the socket and its session, flow control, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final, cast

from broker.errors import NotStomp, StorageFailed
from broker.server.doorkeeper import Doorkeeper
from broker.server.hub import Hub
from broker.session import Session, State

LINGER: Final = 1.0  # s; how long a peer may take to close after our last words
LINGER_STUCK: Final = 10.0  # s; the same while it still has to take output
DISCARD_MAX: Final = 1 << 20  # bytes that are thrown away after the last words
MOVED: Final = 64 << 10  # bytes; a peer that takes less is as good as stuck
UNREAD_MAX: Final = 1 << 20  # bytes of output above one frame of the largest size; who lets more pile up is cut off
KEEPALIVE: Final = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000))


class Connection(asyncio.Protocol):
    """Owns the transport. Every exception of the session ends this connection only, except a storage failure."""

    def __init__(self, hub: Hub, doorkeeper: Doorkeeper) -> None:
        self._hub = hub
        self._doorkeeper = doorkeeper
        self._loop = asyncio.get_running_loop()
        self.address = ""
        self.session: Session
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._clogged = False
        # What was added while the socket took nothing. It is kept here and not in the transport, which from Python
        # 3.12 on counts all its pieces again at each write.
        self._unsent = bytearray()
        self._buffered = 0  # bytes here and in the transport as last seen, booked as output
        self.moved_at = 0.0  # while it is clogged: when its peer had last taken MOVED bytes
        self._taken = 0  # bytes since then
        limits = hub.settings.limits
        self._room = limits.output
        self._most = limits.output + limits.header_block + limits.body + UNREAD_MAX
        self._ending = False
        self._discarded = 0
        self._logged_in = False
        self._peer_done = False  # it has sent its FIN
        self._paused = False

    # --- asyncio ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        # Called as soon as anything is left over: what is handed to the kernel and what is not must be known.
        self._transport.set_write_buffer_limits(high=0)
        _tune(transport.get_extra_info("socket"))
        hub = self._hub
        now = self._loop.time()
        token = hub.rng.token(8).hex()
        self.session = Session(hub.broker, hub.budget, hub.settings.limits, token, now, hub.dirty)
        hub.connections[self.session] = self
        self._doorkeeper.came(self)
        if not self._ending:
            self._arm()

    def data_received(self, data: bytes) -> None:
        if self._ending:
            self._discarded += len(data)
            if self._discarded > DISCARD_MAX:
                self._transport.abort()
            return
        session = self.session
        try:
            session.receive(data, self._loop.time())
        except StorageFailed as error:
            self._hub.storage_failed(error)
            return
        except Exception as error:
            self.broken(error)
            return
        if not self._logged_in and session.state is not State.NEW:
            self._logged_in = True
            self._doorkeeper.logged_in(self)
        if session.due < self._due:
            self._arm()
        hub = self._hub
        if session.paused or hub.congested:
            hub.hold(self)
        hub.wake()

    def eof_received(self) -> bool:
        """The peer has nothing more to say. What it asked receipts for is still answered (netcat's end of input)."""
        self._peer_done = True
        if self._ending:
            return False
        self.session.shut_down(innocent=False)
        self._hub.wake()
        return True

    def pause_writing(self) -> None:
        self._clogged = True
        self.moved_at = self._loop.time()
        self._taken = 0
        self._hub.clogs(self)

    def resume_writing(self) -> None:
        self._clogged = False
        self._hub.clogged.pop(self, None)
        self._send_unsent()
        self.book()
        if self._clogged:
            return
        try:
            self.session.flushed()
        except StorageFailed as error:
            self._hub.storage_failed(error)
        if self._ending:
            # The kernel has all of it by now, so what went to `ack:auto` is settled, and the rest returns.
            self._end_session()
            self._end_after(LINGER)
        self._hub.wake()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        session = self.session
        self._hub.connections.pop(session, None)
        self._hub.clogged.pop(self, None)
        self._clogged = False
        self._unsent.clear()
        self._hub.output.book(-self._buffered)
        self._buffered = 0
        self._doorkeeper.went(self)
        self._end_session()

    def _end_session(self) -> None:
        """What the peer had in flight returns. May be called twice."""
        try:
            self.session.ended()
        except StorageFailed as failure:
            self._hub.storage_failed(failure)
        self._hub.wake()

    # --- out ----------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """One write per turn for everything that the session has for its peer."""
        session = self.session
        out = session.out
        if not out:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        if self._transport.is_closing():
            return
        if data:
            if self._clogged:
                self._unsent += data
            else:
                self._transport.write(data)
            if session.beats:
                session.wrote(self._loop.time())
        if self._clogged:
            self.book(len(data))
        elif session.room != self._room:  # there were messages in it, not only receipts
            session.make_room(self._room)
            if session.flushed():
                self._hub.wake()
        if session.closing:
            self.finish()

    def book(self, written: int = 0) -> None:
        """See what its socket still has to take; `written` bytes were added since the last time."""
        buffered = self._transport.get_write_buffer_size() + len(self._unsent) if self._clogged else 0
        self._taken += self._buffered + written - buffered
        if self._taken >= MOVED:
            self.moved_at = self._loop.time()
            self._taken = 0
        if buffered != self._buffered:
            self._hub.output.book(buffered - self._buffered)
            self._buffered = buffered
        self.session.make_room(self._room - buffered)
        if buffered > self._most:
            self.cut_off(f"{buffered:,} bytes of receipts and messages were not read")

    def _send_unsent(self) -> None:
        """May find the socket full again at once; `pause_writing` is then called from in here."""
        if self._unsent:
            data, self._unsent = bytes(self._unsent), bytearray()
            self._transport.write(data)

    def cut_off(self, why: str) -> None:
        """Close on a peer that does not read what it asked for. Nothing is said against the messages that it has."""
        if self._transport.is_closing():
            return
        self._hub.events.event("warning", "cut-off", why, peer=self.address)
        self.session.shut_down(innocent=True)
        self.refuse()

    def finish(self) -> None:
        """Our last words are said: close our half, give the peer a moment to close its own, then insist."""
        if self._ending or not self.session.closing:
            return
        self._ending = True
        self.resume()
        self._send_unsent()
        if not self._clogged:
            # All is said, so what the peer had in flight returns now and not when it closes its half.
            self._end_session()
        if self._peer_done:
            self._transport.close()
        elif self._transport.can_write_eof():
            with contextlib.suppress(OSError):
                self._transport.write_eof()
        self._end_after(LINGER_STUCK if self._clogged else LINGER)
        fault = self.session.fault
        if fault is not None:
            hint = f" ({fault.hint})" if isinstance(fault, NotStomp) and fault.hint else ""
            # The detail quotes what came, which may be a passcode or a body: it is for the peer alone.
            self._hub.events.event("warning", "refused", f"{fault.summary}{hint}", peer=self.address)

    def refuse(self) -> None:
        """Close at once and without a word: there is no room for this connection."""
        self._ending = True
        self._transport.abort()

    def broken(self, error: Exception) -> None:
        """A bug of ours met this connection: it ends, the others go on."""
        kind = type(error).__name__
        text = f"a connection was closed by an error of ours: {kind}"
        self._hub.events.event("error", "bug", text, peer=self.address)
        self._hub.report(error)
        self._ending = True
        self._transport.abort()

    # --- flow and time ------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = self.session.due
        self._timer = self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        before = self._buffered
        self.book()
        self._timer = None
        if self._ending:
            return
        try:
            self.session.tick(self._loop.time(), moving=self._buffered < before)
        except StorageFailed as error:
            self._hub.storage_failed(error)
            return
        except Exception as error:
            self.broken(error)
            return
        self._arm()
        self._hub.wake()

    def _end_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # transport.close() waits for a stuck peer for ever; this does not.
        self._timer = self._loop.call_later(seconds, self._transport.abort)


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
