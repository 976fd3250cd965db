"""Waiting for Ray: every wait ends, and what went wrong in an actor is said in the run's own words."""

import os
import time
from collections.abc import Callable, Iterator

import pytest
import ray

from minillm_ray.config.errors import InputError, RunError, Terminated
from minillm_ray.remote import (
    PeerUnavailable,
    WorkFailed,
    describe,
    even_shares,
    get,
    is_lost_object,
    ready_among,
    value_of,
)
from minillm_ray.weights.buffers import WeightMismatchError


@pytest.fixture(scope="module", autouse=True)
def local_cluster() -> Iterator[None]:
    """Two CPUs on this machine, for the tests of this file."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


class Trouble(Exception):
    """An exception with a form of its own: two arguments, which a copy made from its text would not have."""

    def __init__(self, where: str, count: int) -> None:
        super().__init__(f"{count} troubles in {where}")


@ray.remote(num_cpus=0)
class Worker:
    """Does as it is told."""

    def number(self, number: int) -> int:
        return number

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def fail(self, error: Exception) -> None:
        raise error

    def fail_in_trouble(self) -> None:
        raise Trouble("here", 3)

    def die(self) -> None:
        os._exit(1)


@pytest.fixture(scope="module")
def worker(local_cluster: None) -> ray.actor.ActorHandle:
    return Worker.remote()


def failure(references: object, kind: type[Exception] = WorkFailed, *, timeout_seconds: float = 60.0) -> str:
    with pytest.raises(kind) as caught:
        get(references, timeout_seconds=timeout_seconds, work="teacher 0: scoring")
    assert type(caught.value) is kind
    return str(caught.value)


def test_results_come_as_ray_gives_them(worker: ray.actor.ActorHandle) -> None:
    """One reference or a list of them, in order."""
    assert get(worker.number.remote(4), timeout_seconds=60, work="counting") == 4
    references = [worker.number.remote(number) for number in (3, 1, 2)]
    assert get(references, timeout_seconds=60, work="counting") == [3, 1, 2]


def test_a_missed_deadline_names_the_work_the_time_and_the_settings_that_raise_it() -> None:
    """And the wait really ends then."""
    slow = Worker.remote()
    began = time.monotonic()
    message = failure(slow.sleep.remote(30.0), timeout_seconds=0.2)
    assert time.monotonic() - began < 10
    assert message.startswith("teacher 0: scoring did not finish within 0.2 s. See the files in RUN/logs")
    assert "pipeline.call_timeout_seconds or pipeline.startup_timeout_seconds" in message
    ray.kill(slow)


def test_one_slow_replica_makes_the_whole_call_late(worker: ray.actor.ActorHandle) -> None:
    """A list of references has one deadline for all of them."""
    slow = Worker.remote()
    assert "did not finish within 0.5 s" in failure(
        [worker.number.remote(1), slow.sleep.remote(30.0)], timeout_seconds=0.5
    )
    ray.kill(slow)


def test_an_exception_in_an_actor_names_the_work_its_kind_and_its_message(worker: ray.actor.ActorHandle) -> None:
    """Without Ray's wrapping."""
    message = failure(worker.fail.remote(ValueError("no such token")))
    assert message == "teacher 0: scoring failed: ValueError: no such token"


def test_an_exception_that_cannot_be_rebuilt_here_still_says_what_it_was(worker: ray.actor.ActorHandle) -> None:
    """As some libraries' own exceptions cannot: their text is what is left."""
    message = failure(worker.fail_in_trouble.remote())
    assert message.startswith("teacher 0: scoring failed: ")
    assert "3 troubles in here" in message


@pytest.mark.parametrize("kind", [InputError, RunError, WeightMismatchError])
def test_errors_that_are_already_in_our_words_pass_as_they_are(
    kind: type[Exception], worker: ray.actor.ActorHandle
) -> None:
    """Bad input found in an actor is still status 2, with the message that was written for it."""
    assert failure(worker.fail.remote(kind("teacher: x has no output head")), kind) == "teacher: x has no output head"


def test_an_actor_that_dies_is_named_and_the_logs_with_it() -> None:
    """While it works, and when it is asked afterwards."""
    doomed = Worker.remote()
    for reference in (doomed.die.remote(), doomed.number.remote(1)):
        message = failure(reference)
        assert message.startswith("teacher 0: scoring: its actor died (")
        assert message.endswith("See the files in RUN/logs")
        assert "\n" not in message


def test_an_actor_that_cannot_be_built_says_why() -> None:
    """The reason is in its constructor's exception, in one line."""

    @ray.remote(num_cpus=0)
    class Unbuildable:
        def __init__(self) -> None:
            raise OSError("no space left for the engine")

        def ready(self) -> bool:
            return True

    message = failure(Unbuildable.remote().ready.remote())
    assert "no space left for the engine" in message
    assert "\n" not in message


def test_a_task_whose_process_dies_ends_the_run_in_our_words() -> None:
    """Work outside an actor too."""

    @ray.remote(num_cpus=0, max_retries=0)
    def die() -> None:
        os._exit(1)

    assert failure(die.remote()).startswith("teacher 0: scoring")


def test_of_many_calls_all_that_are_over_come_at_once_failures_among_them(worker: ray.actor.ActorHandle) -> None:
    """And the others are not waited for."""
    slow = Worker.remote()
    late, value, failed = slow.sleep.remote(30.0), ray.put(1), worker.fail.remote(ValueError("no"))
    ray.wait([failed], timeout=60)
    assert set(ready_among([late, value, failed], timeout_seconds=60.0)) == {value, failed}
    assert ready_among([late], timeout_seconds=0.05) == []
    ray.kill(slow)


def test_where_nothing_is_called_the_time_passes_all_the_same() -> None:
    """A loop around it would otherwise spin."""
    began = time.monotonic()
    assert ready_among([], timeout_seconds=0.1) == []
    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize("kind", [InputError, RunError, PeerUnavailable])
def test_what_the_pipeline_decides_by_arrives_without_rays_wrapping(
    kind: type[Exception], worker: ray.actor.ActorHandle
) -> None:
    """Bad input, the end of a run, and a peer that did not answer, which is no fault of the one that was called."""
    with pytest.raises(kind) as caught:
        value_of(worker.fail.remote(kind("teacher 0 gave no verdict")))
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    "wait",
    [
        lambda reference: get(reference, timeout_seconds=1.0, work="waiting"),
        lambda reference: ready_among([reference], timeout_seconds=1.0),
        value_of,
    ],
    ids=["get", "ready_among", "value_of"],
)
def test_a_signal_that_meets_rays_compiled_code_is_no_failure_of_the_call(
    wait: Callable[[object], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its handler raised, Terminated for one, comes out as itself, and never as the death of a replica."""

    def interrupted(*arguments: object, **options: object) -> None:
        raise SystemError("returned a result with an exception set") from Terminated()

    reference = ray.put(1)
    monkeypatch.setattr(ray, "get", interrupted)
    monkeypatch.setattr(ray, "wait", interrupted)
    with pytest.raises(Terminated):
        wait(reference)


def test_any_other_failure_is_described_in_one_line_by_its_own_name(worker: ray.actor.ActorHandle) -> None:
    """An exception in the actor by its type, a death by Ray's name for it."""
    doomed = Worker.remote()
    for reference, words in (
        (worker.fail.remote(ValueError("a\nb")), "ValueError: b"),
        (doomed.die.remote(), "ActorD"),
    ):
        with pytest.raises(Exception) as caught:
            value_of(reference)
        assert describe(caught.value).startswith(words)
        assert "\n" not in describe(caught.value)
        assert not is_lost_object(caught.value)


@pytest.mark.parametrize("count", [0, 1, 5, 8])
@pytest.mark.parametrize("shares", [1, 2, 3, 8])
def test_shares_are_runs_of_almost_equal_length(count: int, shares: int) -> None:
    """All items, in order, in as many shares as there are replicas, some empty where there are too few."""
    cut = even_shares(list(range(count)), shares)
    assert [item for share in cut for item in share] == list(range(count))
    assert len(cut) == shares
    assert max(map(len, cut)) - min(map(len, cut)) <= 1
