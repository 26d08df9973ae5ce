"""Retry with back-off around an object store, and the health of the remote as `status` shows it."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from sessfs.errors import RemoteConflict, RemoteError, RemoteMissing, RemoteUnavailable
from sessfs.remote.objectstore import LIST_PAGE, Blob, Entry, Forwarding, ObjectStore, RemoteBusy, StoreStatistics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again: after a random time in [0, min(cap_s, base_s * 2 ** (failures - 1))], full jitter."""

    base_s: float = 0.5
    cap_s: float = 60.0
    retry_after_cap_s: float = 300.0
    """The longest that a store's Retry-After is obeyed."""
    deadline_s: float | None = None
    """Give up, raising the last error, when the next try would start later than this after the first; None: never."""

    def delay_s(self, failures: int, chance: float) -> float:
        """Seconds to wait after the *failures*-th failure in a row; *chance* in [0, 1)."""
        return chance * min(self.cap_s, self.base_s * 2.0 ** min(failures - 1, 30))


@dataclass(frozen=True, slots=True)
class HealthReport:
    """How the remote is doing; what `status` shows."""

    state: str
    """"unknown" before the first answer, then "ok" or "degraded"."""
    for_s: float
    """Seconds in this state."""
    error: str
    """The last error's sentence while degraded, else empty."""
    needs_person: bool
    """The last error will not go away by itself (credentials, bucket, unsuitable endpoint)."""
    notes: tuple[str, ...]
    """What should be known although requests succeed, such as a clock that is off."""

    def as_status(self) -> dict[str, Any]:
        """For JSON, where names of times end with `_seconds`."""
        values = asdict(self)
        return {"state": values.pop("state"), "for_seconds": round(values.pop("for_s"), 3), **values}

    def __str__(self) -> str:
        text = self.state if not self.error else f"{self.state} for {self.for_s:.0f} s: {self.error}"
        return "; ".join((text, *self.notes))


class Health:
    """Whether the remote answers; written by Retrying and S3Store, read by `status`. trio's thread only."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._state = "unknown"
        self._since_s: float | None = None
        self._error: RemoteError | None = None
        self._notes: dict[str, str] = {}
        self._next_answer = trio.Event()

    def answered(self) -> None:
        """The store did, or properly refused, what it was asked."""
        self._error = None
        self._enter("ok")
        if self._next_answer.statistics().tasks_waiting:
            self._next_answer.set()
            self._next_answer = trio.Event()

    async def wait_answer(self) -> None:
        """Return when the store has answered anything after this call."""
        await self._next_answer.wait()

    def failed(self, error: RemoteError) -> None:
        """A request failed with *error*."""
        self._error = error
        self._enter("degraded")

    def note(self, topic: str, text: str) -> None:
        """Show *text* about *topic* from now on; an empty text takes it back."""
        self._notes.pop(topic, None)
        if text:
            self._notes[topic] = text

    def report(self) -> HealthReport:
        """The state now."""
        return HealthReport(
            state=self._state,
            for_s=0.0 if self._since_s is None else self._clock() - self._since_s,
            error="" if self._error is None else str(self._error),
            needs_person=self._error is not None and not isinstance(self._error, RemoteUnavailable),
            notes=tuple(self._notes.values()),
        )

    def _enter(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._since_s = self._clock()


class _Shared:
    """What a Retrying and those made from it by `within` have in common."""

    def __init__(self) -> None:
        self.retries = 0
        self.not_before_s = 0.0


class Retrying(Forwarding):
    """Repeats what failed with RemoteUnavailable until it is answered, cancelled, or the policy's deadline is over.

    Every method is safe to repeat. A conditional write is the hard one: its answer may be lost and the repetition then
    be refused because of its own write; so the object is read back, and if its bytes are the caller's, that write
    succeeded. All other errors pass at once. After a store asks for a pause (Retry-After), no request starts before it
    is over, neither repeated nor new.
    """

    def __init__(
        self,
        inner: ObjectStore,
        policy: RetryPolicy | None = None,
        health: Health | None = None,
        *,
        clock: Callable[[], float] = trio.current_time,
        sleep: Callable[[float], Awaitable[object]] = trio.sleep,
        chance: Callable[[], float] = random.random,
        shared: _Shared | None = None,
    ) -> None:
        """*chance* gives numbers in [0, 1) for the jitter; *shared* is for `within` only."""
        super().__init__(inner)
        self._policy = policy or RetryPolicy()
        self._health = health or Health(clock)
        self._clock = clock
        self._sleep = sleep
        self._chance = chance
        self._shared = shared or _Shared()

    @property
    def health(self) -> Health:
        """Updated by every request."""
        return self._health

    def within(self, deadline_s: float) -> Retrying:
        """The same store, counts and health, but each call gives up after *deadline_s* seconds of trying, and after one
        try when the store has been away for longer than that.

        A request under way is not cut off: with the read time-out on top, that is when the call returns.
        """
        return Retrying(
            self._inner,
            replace(self._policy, deadline_s=deadline_s),
            self._health,
            clock=self._clock,
            sleep=self._sleep,
            chance=self._chance,
            shared=self._shared,
        )

    async def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        """As ObjectStore, until answered."""
        return await self._persist(lambda: self._inner.get(key, start, length))

    async def put(self, key: str, body: bytes) -> str:
        """As ObjectStore, until answered."""
        return await self._persist(lambda: self._inner.put(key, body))

    async def put_if(self, key: str, body: bytes, etag: str | None) -> str:
        """As ObjectStore, until answered; recognises its own write behind a lost answer."""
        unanswered = False

        async def attempt() -> str:
            nonlocal unanswered
            try:
                return await self._inner.put_if(key, body, etag)
            except RemoteUnavailable:
                unanswered = True
                raise

        try:
            return await self._persist(attempt)
        except RemoteConflict as conflict:
            if not unanswered:
                raise
            return await self._own_write(key, body, conflict)

    async def list_page(self, prefix: str, start_after: str = "", limit: int = LIST_PAGE) -> list[Entry]:
        """As ObjectStore, until answered."""
        return await self._persist(lambda: self._inner.list_page(prefix, start_after, limit))

    async def delete(self, keys: Sequence[str]) -> None:
        """As ObjectStore, until answered."""
        await self._persist(lambda: self._inner.delete(keys))

    def statistics(self) -> StoreStatistics:
        """The inner store's counts, and the retries made here."""
        return replace(self._inner.statistics(), retries=self._shared.retries)

    async def _own_write(self, key: str, body: bytes, conflict: RemoteConflict) -> str:
        try:
            there = await self.get(key)
        except RemoteMissing:
            raise conflict from None
        if there.body != body:
            raise conflict
        return there.etag

    async def _persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        start_s = self._clock()
        failures = 0
        while True:
            await self._wait_pause(start_s)
            try:
                result = await attempt()
            except RemoteUnavailable as exc:
                self._health.failed(exc)
                failures += 1
                await self._back_off(exc, failures, start_s)
            except (RemoteMissing, RemoteConflict):
                self._health.answered()
                raise
            except RemoteError as exc:
                self._health.failed(exc)
                raise
            else:
                self._health.answered()
                return result

    async def _wait_pause(self, start_s: float) -> None:
        """Wait until no Retry-After forbids a request; a call with a deadline tries at the deadline at the latest."""
        until_s = self._shared.not_before_s
        if self._policy.deadline_s is not None:
            until_s = min(until_s, start_s + self._policy.deadline_s)
        if until_s > self._clock():
            await self._sleep(until_s - self._clock())

    async def _back_off(self, exc: RemoteUnavailable, failures: int, start_s: float) -> None:
        """Wait for the next try, or raise *exc* if it would come after the deadline."""
        delay_s = self._policy.delay_s(failures, self._chance())
        if isinstance(exc, RemoteBusy) and exc.retry_after_s is not None:
            pause_s = min(exc.retry_after_s, self._policy.retry_after_cap_s)
            self._shared.not_before_s = max(self._shared.not_before_s, self._clock() + pause_s)
            # The jitter on top spreads those that all wait for the same moment.
            delay_s += pause_s
        deadline_s = self._policy.deadline_s
        if deadline_s is not None:
            # Once the remote has been away for as long as anybody waits, one try is enough to see whether it is back.
            is_long_away = self._health.report().for_s > deadline_s
            if is_long_away or self._clock() + delay_s > start_s + deadline_s:
                raise exc
        self._shared.retries += 1
        await self._sleep(delay_s)
