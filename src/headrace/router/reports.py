"""What a process tells its controller of requests: what it has counted, and what its users report of theirs.

In: the tallies of the process's router; signals of users' code. Out: CountsReports and Signals over the process's link,
none while there is nothing new. All methods belong to the loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from headrace.observe.tally import Tallies
from headrace.spec.counts import Signal
from headrace.wire.control import CountsReport, Signals

if TYPE_CHECKING:
    from headrace.wire.link import ControlLink

log = logging.getLogger("headrace.router")

REPORT_S = 0.5  # from one report to the next, while requests end
SIGNALS_S = 0.2  # a signal waits so long for others
SIGNALS_AT_ONCE = 1000
MOST_SIGNALS = 10_000  # that wait while the controller is away
SETTLE_S = 2.0
POLL_S = 0.01


class Reports:
    """The reports of one process. Counts are cumulative: one that is lost is made good by the next."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tallies: Tallies) -> None:
        self._loop = loop
        self._tallies = tallies
        self._link: ControlLink | None = None
        self._signals: deque[Signal] = deque(maxlen=MOST_SIGNALS)
        self._lost = 0
        self._timer: asyncio.TimerHandle | None = None
        self._signal_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Reports {len(self._signals)} signals wait, {self._lost} lost>"

    def begin(self, link: ControlLink) -> None:
        """Report over this link from now on, until `stop`. Whoever owns it calls `connected` at each hello."""
        self._link = link
        self._timer = self._loop.call_later(REPORT_S, self._tick)

    def connected(self) -> None:
        """The controller is there, maybe another one than before, which knows nothing yet."""
        self._tallies.untold()
        self.report()
        self._send_signals()

    def signal(self, signal: Signal) -> None:
        """Report this, within a moment; of those that wait for a controller, the eldest are lost beyond a number."""
        if len(self._signals) == MOST_SIGNALS:
            if not self._lost:
                log.warning("more than %d reported values wait for the controller: the eldest are lost", MOST_SIGNALS)
            self._lost += 1
        self._signals.append(signal)
        if len(self._signals) % SIGNALS_AT_ONCE == 0:
            self._send_signals()
        elif self._signal_timer is None:
            self._signal_timer = self._loop.call_later(SIGNALS_S, self._send_signals)

    def report(self) -> None:
        """Send what was counted since the last report."""
        link = self._link
        if link is None or not link.connected:
            return
        news = self._tallies.changed()
        if news and not link.send(CountsReport(tuple(news), self._tallies.began)):
            self._tallies.untold()

    def stop(self) -> None:
        """Send what there is, and nothing more after it."""
        self.report()
        self._send_signals()
        for timer in (self._timer, self._signal_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._signal_timer = None
        self._link = None

    async def settle(self) -> None:
        """As `stop`, for a process that ends: waits a moment for a controller that is not there, if signals wait."""
        give_up = self._loop.time() + SETTLE_S
        while self._signals and self._loop.time() < give_up and not self._is_connected():  # noqa: ASYNC110 - at its end
            await asyncio.sleep(POLL_S)
        self.stop()
        await asyncio.sleep(0)  # the loop writes what was sent in this round

    def _is_connected(self) -> bool:
        return self._link is not None and self._link.connected

    def _tick(self) -> None:
        self.report()
        self._timer = self._loop.call_later(REPORT_S, self._tick)

    def _send_signals(self) -> None:
        if self._signal_timer is not None:
            self._signal_timer.cancel()
            self._signal_timer = None
        link, signals = self._link, self._signals
        while signals and link is not None and link.connected:
            several = tuple(signals[i] for i in range(min(len(signals), SIGNALS_AT_ONCE)))
            if not link.send(Signals(several)):
                return  # they go when it is connected again
            for _ in several:
                signals.popleft()
