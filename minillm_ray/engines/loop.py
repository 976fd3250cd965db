"""A thread that owns an engine and steps it. Coroutines hand in requests and await their results.

    request  --> [ inbox ] --> add ... step, step, step --> result
    command  --> [ inbox ] --> runs between two steps, alone

The engine is built, stepped and commanded in this one thread, so that nothing in it needs a lock. The results of a step
go back to their event loop in one go: each wake-up of its thread takes the interpreter from this one.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

_IDLE_SECONDS = 0.2


class Finished(Protocol):
    """A finished request."""

    @property
    def request_id(self) -> str: ...


Output = TypeVar("Output", bound=Finished)
Output_co = TypeVar("Output_co", bound=Finished, covariant=True)
Answer = TypeVar("Answer")


class SteppedEngine(Protocol[Output_co]):
    """What the loop needs of an engine."""

    def step(self) -> Sequence[Output_co]: ...
    def has_unfinished(self) -> bool: ...
    def abort(self, request_ids: Sequence[str]) -> None: ...


Engine = TypeVar("Engine", bound=SteppedEngine[Any])


@dataclass(frozen=True)
class Together:
    """Requests that enter the engine in one go, ordered by place: the same requests make the same batches each time.

    key: of the group; size: requests in it; place: of this one, from 0.
    """

    key: str
    size: int
    place: int


@dataclass(frozen=True)
class Batched:
    """An answer that is made with those of the other requests that finish in the same step and say the same `make`.

    make: the items of all of them, in order, to an answer each; what it raises is raised for each.
    """

    make: Callable[[list[Any]], list[Any]]
    item: Any


@dataclass(frozen=True)
class _Request:
    add: Callable[[Any, str], None]
    then: Callable[[Any], Any]
    result: "asyncio.Future[Any]"
    together: Together | None


@dataclass(frozen=True)
class _Command:
    function: Callable[[Any], Any]
    result: "asyncio.Future[Any]"


@dataclass(frozen=True)
class _Outcome:
    """Of something that was asked: an answer, or an error."""

    future: "asyncio.Future[Any]"
    answer: Any = None
    error: BaseException | None = None


@dataclass
class _State:
    """The loop thread's own."""

    running: dict[str, _Request] = field(default_factory=dict)
    groups: dict[str, list[_Request]] = field(default_factory=dict)
    num_added: int = 0


class EngineLoop(Generic[Engine, Output]):
    """build: makes the engine, in the loop's thread. An engine that raises takes every request with it, for good."""

    def __init__(self, build: Callable[[], Engine], *, name: str) -> None:
        self._build = build
        self._inbox: queue.SimpleQueue[_Request | _Command] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._progress = time.monotonic()
        self._busy: tuple[float, float | None] = (0.0, None)
        """Seconds of work that are over, and since when the work in progress goes on; read and replaced as one."""
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def ready(self) -> None:
        """Once the engine is built. Raises what building it raised."""
        await self.command(lambda engine: None)

    async def request(self, add: Callable[[Engine, str], None], *, together: Together | None = None) -> Output:
        """Add one request to the engine, under the id that `add` is given, and wait for its result.

        Where the coroutine is cancelled the request is aborted.
        """
        return await self.request_then(add, lambda output: output, together=together)

    async def request_then(
        self,
        add: Callable[[Engine, str], None],
        then: Callable[[Output], Answer | Batched],
        *,
        together: Together | None = None,
    ) -> Answer:
        """As `request`, and what `then` makes of the result: before the next step, where a command would come after.

        Where `then` returns a Batched, the answer is the one that this makes.
        """
        result: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._put(_Request(add, then, result, together))
        return await result

    async def command(self, function: Callable[[Engine], Answer | Batched]) -> Answer:
        """Run `function` between two steps and return what it returns, or what the Batched that it returns makes."""
        result: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._put(_Command(function, result))
        return await result

    @property
    def seconds_since_progress(self) -> float:
        """How long ago the thread last finished a step, a command or an idle wait: a hang shows here.

        Raises RuntimeError once the engine has ended by an exception.
        """
        if self._failure is not None:
            raise RuntimeError(f"the engine ended: {self._failure!r}") from self._failure
        return time.monotonic() - self._progress

    @property
    def busy_seconds(self) -> float:
        """How long the thread has been in steps and commands so far, the one in progress included."""
        done, since = self._busy
        return done if since is None else done + time.monotonic() - since

    def _put(self, item: _Request | _Command) -> None:
        self._inbox.put(item)
        if self._failure is not None:  # the thread has gone: nobody else would answer
            self._fail(self._drain(), self._failure)

    def _run(self) -> None:
        state = _State()
        try:
            engine = self._build()
            while True:
                items = self._drain(wait=not engine.has_unfinished())
                if items or engine.has_unfinished():
                    self._busy = (self._busy[0], time.monotonic())
                for item in items:
                    self._accept(engine, state, item)
                self._abort_cancelled(engine, state)
                if engine.has_unfinished():
                    finished = [(state.running.pop(output.request_id), output) for output in engine.step()]
                    _answer([(request.result, request.then, output) for request, output in finished])
                self._busy = (self.busy_seconds, None)
                self._progress = time.monotonic()
        except BaseException as error:
            self._failure = error
            waiting = [*state.running.values(), *(request for group in state.groups.values() for request in group)]
            self._fail([*waiting, *self._drain()], error)

    def _accept(self, engine: Engine, state: _State, item: _Request | _Command) -> None:
        if isinstance(item, _Command):
            _answer([(item.result, item.function, engine)])
            return
        if item.together is None:
            self._add(engine, state, item)
            return
        group = state.groups.setdefault(item.together.key, [])
        group.append(item)
        if len(group) == item.together.size:
            del state.groups[item.together.key]
            for request in sorted(group, key=_place):
                self._add(engine, state, request)

    @staticmethod
    def _add(engine: Engine, state: _State, item: _Request) -> None:
        request_id = str(state.num_added)
        state.num_added += 1
        try:
            item.add(engine, request_id)
        except Exception as error:
            _deliver([_Outcome(item.result, error=error)])
            return
        state.running[request_id] = item

    @staticmethod
    def _abort_cancelled(engine: Engine, state: _State) -> None:
        cancelled = [request_id for request_id, request in state.running.items() if request.result.cancelled()]
        if cancelled:
            engine.abort(cancelled)
            for request_id in cancelled:
                del state.running[request_id]

    def _drain(self, *, wait: bool = False) -> list[_Request | _Command]:
        items: list[_Request | _Command] = []
        try:
            items.append(self._inbox.get(timeout=_IDLE_SECONDS) if wait else self._inbox.get_nowait())
            while True:
                items.append(self._inbox.get_nowait())
        except queue.Empty:
            return items

    @staticmethod
    def _fail(items: Sequence[_Request | _Command], error: BaseException) -> None:
        _deliver([_Outcome(item.result, error=error) for item in items])


def _place(request: _Request) -> int:
    assert request.together is not None
    return request.together.place


def _answer(asked: "Sequence[tuple[asyncio.Future[Any], Callable[[Any], Any], Any]]") -> None:
    """Each future gets its function of its argument. Nothing is done for one that nobody waits for any more."""
    outcomes: list[_Outcome] = []
    batches: dict[Callable[[list[Any]], list[Any]], list[tuple[asyncio.Future[Any], Any]]] = {}
    for future, function, argument in asked:
        if future.cancelled():
            continue
        try:
            answer = function(argument)
        except Exception as error:
            outcomes.append(_Outcome(future, error=error))
            continue
        if isinstance(answer, Batched):
            batches.setdefault(answer.make, []).append((future, answer.item))
        else:
            outcomes.append(_Outcome(future, answer))
    for make, members in batches.items():
        futures, items = zip(*members, strict=True)
        try:
            answers = make(list(items))
        except Exception as error:
            outcomes += [_Outcome(future, error=error) for future in futures]
            continue
        outcomes += [_Outcome(future, answer) for future, answer in zip(futures, answers, strict=True)]
    _deliver(outcomes)


def _deliver(outcomes: Sequence[_Outcome]) -> None:
    """One call into each event loop that waits for some of them, from whatever thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome.future.get_loop(), []).append(outcome)
    for loop, its_own in by_loop.items():
        with suppress(RuntimeError):  # it was closed: nobody waits there any more
            loop.call_soon_threadsafe(_settle, its_own)


def _settle(outcomes: Sequence[_Outcome]) -> None:
    """In the thread of the event loop."""
    for outcome in outcomes:
        if outcome.future.done():  # cancelled since
            continue
        if outcome.error is None:
            outcome.future.set_result(outcome.answer)
        else:
            outcome.future.set_exception(outcome.error)
