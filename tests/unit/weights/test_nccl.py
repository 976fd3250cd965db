"""The learner's side of the transfer from GPU to GPU: groups come and go, versions arrive whole or not at all."""

import pickle
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import ray
import torch
from torch import Tensor

from minillm_ray.weights.nccl import NcclPublisher, ReplicaControl, TransferFailed, WeightOffer, within

WEIGHTS = [("body", torch.tensor([1.0, 2.0])), ("ids", torch.tensor([3, 4]))]
NEVER = threading.Event()


class Call:
    """A method of an actor handle: `remote` runs at once, and what it raises comes at `ray.get`."""

    def __init__(self, method: Any) -> None:
        self.remote = lambda *arguments: (method, arguments)


class Replica:
    """What a rollout actor does when vLLM's trainer asks; its handle too."""

    def __init__(self) -> None:
        self.joined: list[dict[str, Any]] = []
        self.received: list[tuple[dict[str, Any], int]] = []
        self.join_weight_group = Call(self.joined.append)
        self.receive_weights = Call(lambda info, version: self.received.append((info, version)))


class Group:
    """Stands for vLLM's trainer engine, in the order of calls that its send_weights has. script: how each send ends."""

    def __init__(self, control: ReplicaControl, tensors: Mapping[str, Tensor], script: list[Any]) -> None:
        control.init_weight_transfer_engine({"rank_offset": 1})
        self.control, self.tensors, self.script = control, tensors, script
        self.sent: list[dict[str, Tensor]] = []
        self.is_open = True

    def send_weights(self) -> None:
        assert self.is_open
        self.control.start_weight_update()
        self.control.update_weights({"names": list(self.tensors)})
        outcome = self.script.pop(0) if self.script else None
        if outcome is NEVER:
            NEVER.wait(20)
        if outcome is not None:
            raise outcome
        self.sent.append({name: tensor.clone() for name, tensor in self.tensors.items()})
        self.control.finish_weight_update()

    def shutdown(self) -> None:
        self.is_open = False


class Bed:
    """A publisher, the groups that it opened, and what is to go wrong: at a meeting, or with a send of a new group."""

    def __init__(self, *, dtype: torch.dtype = torch.float32) -> None:
        self.groups: list[Group] = []
        self.meetings: list[Any] = []
        self.sends: list[Any] = []
        self.publisher = NcclPublisher(
            dtype=dtype, own_handle=lambda: "rank 0", open_group=self._open, timeout_seconds=0.2
        )

    def _open(self, control: ReplicaControl, tensors: Mapping[str, Tensor]) -> Group:
        outcome = self.meetings.pop(0) if self.meetings else None
        if outcome is NEVER:
            NEVER.wait(20)
        if outcome is not None:
            raise outcome
        self.groups.append(Group(control, tensors, self.sends))
        return self.groups[-1]

    def publish(self, version: int, factor: int = 1) -> WeightOffer:
        [offer] = self.publisher.publish([(name, tensor * factor) for name, tensor in WEIGHTS], version=version)
        return offer


@pytest.fixture(autouse=True)
def deadlines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """ray.get runs the call; the deadlines that it was given."""
    given: list[float] = []

    def get(reference: tuple[Any, tuple[Any, ...]], *, timeout: float) -> Any:
        given.append(timeout)
        method, arguments = reference
        return method(*arguments)

    monkeypatch.setattr(ray, "get", get)
    yield given


def test_an_offer_names_the_version_and_whom_to_ask() -> None:
    """Nothing is sent and no group is opened before a replica asks; an offer travels."""
    bed = Bed()
    offer = bed.publish(7)
    assert offer == WeightOffer(7, "rank 0") == pickle.loads(pickle.dumps(offer))
    assert not bed.groups
    assert bed.publisher.num_buffers == 0


def test_a_replica_meets_once_and_is_sent_every_version_it_asks_for() -> None:
    """In the dtype of the samplers; integers as they are; the replica hears the version with each."""
    bed, replica = Bed(dtype=torch.bfloat16), Replica()
    for version, factor in ((1, 1), (2, 3)):
        bed.publish(version, factor)
        assert bed.publisher.send("a", replica) == version
    [group] = bed.groups
    assert [info["rank_offset"] for info in replica.joined] == [1]
    assert replica.received == [({"names": ["body", "ids"]}, 1), ({"names": ["body", "ids"]}, 2)]
    assert [sent["body"].tolist() for sent in group.sent] == [[1.0, 2.0], [3.0, 6.0]]
    assert {name: tensor.dtype for name, tensor in group.sent[0].items()} == {
        "body": torch.bfloat16,
        "ids": torch.int64,
    }


def test_training_after_publishing_does_not_reach_what_is_sent() -> None:
    """A replica that asks late gets the version as it was published."""
    bed, weights = Bed(), [("body", torch.ones(2))]
    list(bed.publisher.publish(weights, version=1))
    weights[0][1].add_(5.0)
    bed.publisher.send("late", Replica())
    assert bed.groups[0].sent[0]["body"].tolist() == [1.0, 1.0]


def test_a_replica_that_joins_late_opens_a_group_of_its_own() -> None:
    """The groups of the others stay as they are."""
    bed, first, second = Bed(), Replica(), Replica()
    bed.publish(1)
    bed.publisher.send("first", first)
    bed.publish(2)
    bed.publisher.send("second", second)
    bed.publisher.send("first", first)
    assert [len(group.sent) for group in bed.groups] == [2, 1]
    assert (len(first.joined), len(second.joined)) == (1, 1)


@pytest.mark.parametrize("failure", [RuntimeError("unreachable"), NEVER])
def test_a_meeting_that_fails_or_never_ends_is_tried_once_more(failure: Any) -> None:
    """Nothing was loaded, so the replica is none the worse: a new epoch."""
    bed, replica = Bed(), Replica()
    bed.publish(1)
    bed.meetings = [failure]
    assert bed.publisher.send("a", replica) == 1
    assert len(bed.groups) == 1


def test_two_meetings_that_fail_are_the_end_of_a_pull() -> None:
    """The message says what befell each."""
    bed = Bed()
    bed.publish(1)
    bed.meetings = [RuntimeError("unreachable"), NEVER]
    with pytest.raises(TransferFailed, match=r"a and the learner did not meet: unreachable; then no end within 0\.2 s"):
        bed.publisher.send("a", Replica())


@pytest.mark.parametrize("failure", [RuntimeError("broken"), NEVER])
def test_a_transfer_that_fails_or_never_ends_ends_its_group_alone(failure: Any) -> None:
    """It is never used again; the other replica's goes on, and the next one of that name opens a new one."""
    bed, well = Bed(), Replica()
    bed.publish(1)
    bed.publisher.send("well", well)
    bed.sends.append(failure)
    with pytest.raises(TransferFailed, match=r"weight version 1 did not reach ill: (broken|no end within)"):
        bed.publisher.send("ill", Replica())
    assert [group.is_open for group in bed.groups] == [True, False]
    bed.publish(2)
    assert bed.publisher.send("well", well) == 2
    assert bed.publisher.send("ill", Replica()) == 2
    assert [group.is_open for group in bed.groups] == [True, False, True]


def test_what_the_replica_raises_fails_the_transfer() -> None:
    """As its engine's error reaches the trainer through vLLM's client."""
    bed, replica = Bed(), Replica()

    def refuse(info: dict[str, Any], version: int) -> None:
        raise ValueError("no room")

    replica.receive_weights = Call(refuse)
    bed.publish(1)
    with pytest.raises(TransferFailed, match="no room"):
        bed.publisher.send("a", replica)


def test_groups_of_replicas_that_are_gone_are_ended_at_the_next_version() -> None:
    """One that did not take the last version is gone, or opens a new group when it is back."""
    bed, gone, here = Bed(), Replica(), Replica()
    bed.publish(1)
    for name, replica in (("gone", gone), ("here", here)):
        bed.publisher.send(name, replica)
    bed.publish(2)
    bed.publisher.send("here", here)
    bed.publish(3)
    assert [group.is_open for group in bed.groups] == [False, True]


def test_every_call_to_a_replica_has_the_deadline(deadlines: list[float]) -> None:
    """Meeting and receiving alike."""
    bed = Bed()
    bed.publish(1)
    bed.publisher.send("a", Replica())
    assert deadlines == [0.2, 0.2]


def test_within_gives_the_value_or_what_was_raised_or_gives_up() -> None:
    """TimeoutError once the time is over, though the call never ends."""
    assert within(5.0, lambda: "value") == "value"
    with pytest.raises(KeyError, match="lost"):
        within(5.0, lambda: {}["lost"])
    with pytest.raises(TimeoutError, match=r"no end within 0\.05 s"):
        within(0.05, lambda: NEVER.wait(20))
    assert within(5.0, lambda: None) is None


def test_a_failed_transfer_crosses_processes() -> None:
    """As every error that leaves an actor must."""
    assert str(pickle.loads(pickle.dumps(TransferFailed("lost")))) == "lost"
