"""The loop around an engine: whose result is whose, what runs between two steps, who hears of a failure."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from minillm_ray.engines.loop import Batched, EngineLoop, Together


@dataclass(frozen=True)
class Output:
    request_id: str
    name: str


@dataclass
class ScriptedEngine:
    """A request takes as many steps as it says. gate: a step waits for it; fails_at: this step raises."""

    fails_at: int | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    entered: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    running: dict[str, list[Any]] = field(default_factory=dict)
    num_steps: int = 0
    in_step: bool = False
    threads: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.gate.set()

    def add(self, request_id: str, name: str, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"{name} has no steps")
        self.entered.append(name)
        self.running[request_id] = [name, steps]

    def step(self) -> list[Output]:
        assert self.running, "stepped without a request"
        self.in_step = True
        self.threads.add(threading.get_ident())
        assert self.gate.wait(timeout=30)
        self.num_steps += 1
        if self.num_steps == self.fails_at:
            raise MemoryError("no memory left")
        finished = []
        for request_id, request in list(self.running.items()):
            request[1] -= 1
            if request[1] == 0:
                del self.running[request_id]
                finished.append(Output(request_id, request[0]))
        self.in_step = False
        return finished[::-1]

    def finish_soon(self) -> None:
        for request in self.running.values():
            request[1] = 1

    def has_unfinished(self) -> bool:
        return bool(self.running)

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self.aborted.append(self.running.pop(request_id)[0])


Loop = EngineLoop[ScriptedEngine, Output]


def run(scenario: Callable[[Loop, ScriptedEngine], Coroutine[Any, Any, None]], **engine: Any) -> None:
    """A loop around a scripted engine, and a scenario with both; a scenario that hangs is an error."""
    scripted = ScriptedEngine(**engine)

    async def play() -> None:
        await asyncio.wait_for(scenario(EngineLoop(lambda: scripted, name="test"), scripted), timeout=30)

    asyncio.run(play())


def request(loop: Loop, name: str, steps: int = 1, together: Together | None = None) -> Coroutine[Any, Any, Output]:
    return loop.request(lambda engine, request_id: engine.add(request_id, name, steps), together=together)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_every_request_gets_its_own_result() -> None:
    """Whatever the order in which they finish, and though each is one of many."""

    async def scenario(loop: Loop, engine: ScriptedEngine) -> None:
        names = [str(k) for k in range(50)]
        outputs = await asyncio.gather(*(request(loop, name, 1 + int(name) % 7) for name in names))
        assert [output.name for output in outputs] == names
        assert len({output.request_id for output in outputs}) == 50

    run(scenario)


def test_a_command_runs_between_two_steps_in_the_thread_that_steps() -> None:
    """Alone, while requests are in flight, which then go on; its value is the caller's."""

    async def scenario(loop: Loop, engine: ScriptedEngine) -> None:
        endless = asyncio.ensure_future(request(loop, "endless", 10**9))
        await until(lambda: bool(engine.running))
        for _ in range(5):
            in_step, thread, unfinished = await loop.command(
                lambda engine: (engine.in_step, threading.get_ident(), engine.has_unfinished())
            )
            assert unfinished and not in_step
        await loop.command(lambda engine: engine.finish_soon())
        assert (await endless).name == "endless"
        assert engine.threads == {thread} and thread != threading.get_ident()

    run(scenario)


def test_a_command_that_raises_harms_nobody_else() -> None:
    """Its caller gets the error; the request in flight its result."""

    async def scenario(loop: Loop, engine: ScriptedEngine) -> None:
        long = asyncio.ensure_future(request(loop, "long", 20))
        with pytest.raises(ZeroDivisionError):
            await loop.command(lambda engine: 1 / 0)
        assert (await long).name == "long"

    run(scenario)


def test_a_request_that_the_engine_refuses_harms_nobody_else() -> None:
    """The error of `add` is its caller's."""

    async def scenario(loop: Loop, engine: ScriptedEngine) -> None:
        good, bad = await asyncio.gather(request(loop, "good", 3), request(loop, "bad", 0), return_exceptions=True)
        assert good.name == "good"
        assert isinstance(bad, ValueError) and "no steps" in str(bad)

    run(scenario)


def test_the_results_of_a_step_wake_their_event_loop_once() -> None:
    """However many end in it."""

    async def scenario(loop: Loop, engine: ScriptedEngine) -> None:
        await loop.ready()
        mine = asyncio.get_running_loop()
        wake, calls = mine.call_soon_threadsafe, []

        def counted(callback: Any, *arguments: Any, **options: Any) -> Any:
            calls.append(callback)
            return wake(callback, *arguments, **options)

        mine.call_soon_threadsafe = counted  # type: ignore[method-assign]
        await asyncio.gather(*(request(loop, str(k), 2, Together("all", 20, k)) for k in range(20)))
        assert len(calls) == 1

    run(scenario)


def test_an_event_loop_that_was_closed_harms_nobody_else() -> None:
    """Its requests end in an engine that goes on for others."""
    scripted = ScriptedEngine()
    scripted.gate.clear()
    loop: Loop = EngineLoop(lambda: scripted, name="test")
    closed = asyncio.new_event_loop()
    left_alone = closed.create_task(request(loop, "left alone", 2))
    closed.run_until_complete(asyncio.sleep(0))
    closed.close()

    async def scenario() -> None:
        scripted.gate.set()
        assert (await asyncio.wait_for(request(loop, "other", 5), timeout=30)).name == "other"

    asyncio.run(scenario())
    assert not left_alone.done()


def test_answers_that_are_made_together_are_those_of_one_step() -> None:
    """Two requests end in the first step, two in the second; what fails there fails for those that are in it alone."""
    made: list[list[str]] = []

    def join(names: list[str]) -> list[str]:
        made.append(sorted(names))
        if "bad" in names:
            raise ArithmeticError("a bad one")
        return [f"{name} of {len(names)}" for name in names]

    async def scenario(loop: Loop, engine: ScriptedEngine) -> None:
        async def ask(name: str, steps: int, place: int) -> Any:
            return await loop.request_then(
                lambda engine, request_id: engine.add(request_id, name, steps),
                lambda output: Batched(join, output.name),
                together=Together("all", 4, place),
            )

        asked = [("a", 1), ("bad", 2), ("b", 1), ("c", 2)]
        answers = await asyncio.gather(
            *(ask(name, steps, place) for place, (name, steps) in enumerate(asked)), return_exceptions=True
        )
        assert made == [["a", "b"], ["bad", "c"]]
        assert (answers[0], answers[2]) == ("a of 2", "b of 2")
        assert all(isinstance(answers[k], ArithmeticError) for k in (1, 3))
        assert await loop.command(lambda engine: Batched(join, "d")) == "d of 1"

    run(scenario)


def test_requests_that_belong_together_enter_in_one_go_in_order_of_place() -> None:
    """Nobody enters before the last is there, though others do; groups of another key are others."""

    async def scenario(loop: Loop, engine: ScriptedEngine) -> None:
        late = [asyncio.ensure_future(request(loop, f"a{k}", 2, Together("a", 3, k))) for k in (2, 0)]
        other = request(loop, "b0", 1, Together("b", 1, 0))
        assert (await other).name == "b0"
        await request(loop, "alone")
        assert engine.entered == ["b0", "alone"]
        assert (await request(loop, "a1", 2, Together("a", 3, 1))).name == "a1"
        assert [(await task).name for task in late] == ["a2", "a0"]
        assert engine.entered == ["b0", "alone", "a0", "a1", "a2"]

    run(scenario)


def test_a_key_may_be_used_again() -> None:
    """A group that has entered is forgotten."""

    async def scenario(loop: Loop, engine: ScriptedEngine) -> None:
        for _ in range(2):
            await asyncio.gather(*(request(loop, str(k), 1, Together("key", 2, k)) for k in (1, 0)))
        assert engine.entered == ["0", "1", "0", "1"]

    run(scenario)


def test_a_cancelled_request_is_aborted_and_the_others_go_on() -> None:
    """Between two steps, once."""

    async def scenario(loop: Loop, engine: ScriptedEngine) -> None:
        engine.gate.clear()
        doomed, other = (asyncio.ensure_future(request(loop, name, 5)) for name in ("doomed", "other"))
        await until(lambda: engine.in_step)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        engine.gate.set()
        assert (await other).name == "other"
        assert engine.aborted == ["doomed"]

    run(scenario)


def test_a_request_that_is_cancelled_on_the_way_back_leaves_the_other_results_of_its_step() -> None:
    """After the thread has looked, and before the event loop hears of the step."""

    async def scenario(loop: Loop, engine: ScriptedEngine) -> None:
        mine, cancelled = asyncio.get_running_loop(), threading.Event()

        def then(output: Output) -> str:
            if output.name == "doomed":
                mine.call_soon_threadsafe(lambda: (doomed.cancel(), cancelled.set()))
                assert cancelled.wait(timeout=30)
            return output.name

        def ask(name: str, place: int) -> Coroutine[Any, Any, str]:
            return loop.request_then(
                lambda engine, request_id: engine.add(request_id, name, 1), then, together=Together("all", 3, place)
            )

        doomed = asyncio.ensure_future(ask("doomed", 1))
        assert await asyncio.gather(ask("before", 0), ask("after", 2)) == ["before", "after"]
        assert doomed.cancelled()

    run(scenario)


def test_the_only_request_may_be_cancelled() -> None:
    """The engine is then not stepped without a request, and still answers."""

    async def scenario(loop: Loop, engine: ScriptedEngine) -> None:
        engine.gate.clear()
        doomed = asyncio.ensure_future(request(loop, "doomed", 5))
        await until(lambda: engine.in_step)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        engine.gate.set()
        await until(lambda: engine.aborted == ["doomed"])
        assert (await request(loop, "next")).name == "next"

    run(scenario)


def test_an_engine_that_raises_refuses_whatever_is_asked_of_it_from_then_on() -> None:
    """What was running, what waited for company, and what comes later: everybody gets the error, nobody waits."""

    async def scenario(loop: Loop, engine: ScriptedEngine) -> None:
        engine.gate.clear()
        asked = [request(loop, "running", 9), request(loop, "waits for company", 1, Together("a", 2, 0))]
        before = [asyncio.ensure_future(each) for each in asked]
        await until(lambda: engine.in_step)
        engine.gate.set()
        for outcome in await asyncio.gather(*before, return_exceptions=True):
            assert isinstance(outcome, MemoryError)
        for late in (request(loop, "late"), loop.command(lambda engine: None), loop.ready()):
            with pytest.raises(MemoryError, match="no memory left"):
                await late

    run(scenario, fails_at=2)


def test_the_thread_is_busy_in_steps_and_commands_and_not_while_it_waits() -> None:
    """The count goes on within a step, and stands still while there is nothing to do."""

    async def scenario(loop: Loop, engine: ScriptedEngine) -> None:
        await loop.ready()
        engine.gate.clear()
        long = asyncio.ensure_future(request(loop, "long"))
        await until(lambda: engine.in_step)
        within = loop.busy_seconds
        await until(lambda: loop.busy_seconds > within)
        engine.gate.set()
        await long
        before, after = await loop.command(
            lambda engine: (loop.busy_seconds, time.sleep(0.001), loop.busy_seconds)[::2]
        )
        assert within < before < after
        counts = [after]
        while len(counts) < 2 or counts[-1] != counts[-2]:  # until it stands still
            counts.append(loop.busy_seconds)
            await asyncio.sleep(0.001)

    run(scenario)


def test_an_engine_that_cannot_be_built_says_why_when_it_is_awaited() -> None:
    """The constructor returns at once; `ready` raises what building raised, and so does every request."""

    def build() -> ScriptedEngine:
        raise OSError("no such model")

    async def scenario() -> None:
        loop: Loop = EngineLoop(build, name="test")
        with pytest.raises(OSError, match="no such model"):
            await loop.ready()
        with pytest.raises(OSError, match="no such model"):
            await request(loop, "late")

    asyncio.run(scenario())


def test_an_engine_that_ended_is_no_sign_of_life() -> None:
    """Whoever asks how long ago it moved on hears that it will not again."""

    def build() -> Any:
        raise ValueError("no such model")

    loop: EngineLoop[Any, Any] = EngineLoop(build, name="ends")
    with pytest.raises(ValueError, match="no such model"):
        asyncio.run(loop.ready())
    with pytest.raises(RuntimeError, match="no such model"):
        _ = loop.seconds_since_progress
