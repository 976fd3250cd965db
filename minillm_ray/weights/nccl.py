"""A version of the weights sent from GPU to GPU, by vLLM's own weight-transfer engine. Not yet run on a GPU.

    learner rank 0: publish = keep a copy of the tensors            replica: pull = ask rank 0 to send
         send: [ meet, once, in a group of these two ] -> broadcast ------------> load, between two engine steps

Each replica has a group of its own with rank 0. One that joins late, or comes in the place of a dead one, opens its
own, and what befalls one group no other notices. A group in which anything failed or missed its deadline is ended and
never used again; the next one is a new epoch. Where a transfer had begun, the replica's engine may hold half of a
version: the pull fails, and the replica is replaced like one that died.

Not here: vLLM (engines/weight_transfer.py). The bytes are not hashed, since they never leave vLLM's engine: what stays
is the comparison of log-probabilities (weights.max_mismatch_nats).
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

import ray
import torch
from torch import Tensor

Answer = TypeVar("Answer")

_MEETINGS = 2


class TransferFailed(Exception):
    """Weights did not arrive: a group did not come about, broke, or missed its deadline."""


@dataclass(frozen=True)
class WeightOffer:
    """What a replica needs of a version: whom to ask. sender: the actor handle of learner rank 0."""

    version: int
    sender: Any


class TransferGroup(Protocol):
    """Rank 0's end of a group (engines.weight_transfer.open_group)."""

    def send_weights(self) -> None: ...
    def shutdown(self) -> None: ...


class ReplicaControl:
    """The replica's end as vLLM's trainer calls it (vLLM's VLLMWeightSyncClient), each call with a deadline.

    replica: the actor handle of a rollout replica. It starts, fills and finishes an update in one go between two engine
    steps, hence `start_weight_update` and `finish_weight_update` have nothing left to do.
    """

    def __init__(self, replica: Any, *, timeout_seconds: float) -> None:
        self._replica = replica
        self._timeout_seconds = timeout_seconds
        self.version = 0
        """That the next update makes."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        ray.get(self._replica.join_weight_group.remote(init_info), timeout=self._timeout_seconds)

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: dict[str, Any]) -> None:
        ray.get(self._replica.receive_weights.remote(update_info, self.version), timeout=self._timeout_seconds)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        pass


OpenGroup: TypeAlias = Callable[[ReplicaControl, Mapping[str, Tensor]], TransferGroup]
"""Meets the replica behind the control. Each `send_weights` of the group sends the tensors as they then are."""


@dataclass
class _Member:
    group: TransferGroup
    control: ReplicaControl
    version: int
    """That it took last."""


class NcclPublisher:
    """Rank 0's: keeps the last published version and sends it to each replica that asks.

    dtype: that floating-point tensors are published in. own_handle: gives the handle of the actor that this lives in.
    """

    num_buffers = 0

    def __init__(
        self,
        *,
        dtype: torch.dtype,
        own_handle: Callable[[], Any],
        open_group: OpenGroup,
        timeout_seconds: float,
    ) -> None:
        self._dtype = dtype
        self._own_handle, self._open_group = own_handle, open_group
        self._timeout_seconds = timeout_seconds
        self._kept: dict[str, Tensor] = {}
        self._version = 0
        self._members: dict[str, _Member] = {}
        self._lock = threading.Lock()
        """A version is not overwritten while it is being sent."""

    def publish(self, tensors: Iterable[tuple[str, Tensor]], *, version: int) -> Iterator[WeightOffer]:
        """Keep a copy of full tensors; the offer of it. Groups of replicas that did not take the last one are ended."""
        with self._lock:
            for name, member in list(self._members.items()):
                if member.version != self._version:
                    self._end(name)
            for name, tensor in tensors:
                kept = self._kept.get(name)
                if kept is None:
                    dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
                    kept = self._kept[name] = torch.empty_like(tensor, dtype=dtype, requires_grad=False)
                kept.copy_(tensor.detach())
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # they are sent on other streams
            self._version = version
        yield WeightOffer(version, self._own_handle())

    def send(self, name: str, replica: Any) -> int:
        """Send the last published version to `replica`, whose name no other has. Returns that version.

        Raises TransferFailed; the group is then ended, and a replica that had begun to load is of no more use.
        """
        with self._lock:
            member = self._members.get(name) or self._meet(name, replica)
            member.control.version = self._version
            try:
                within(self._timeout_seconds, member.group.send_weights)
            except Exception as error:
                self._end(name)
                raise TransferFailed(f"weight version {self._version} did not reach {name}: {error}") from None
            member.version = self._version
            return self._version

    def _meet(self, name: str, replica: Any) -> _Member:
        """A new epoch. Nothing is loaded yet, so a meeting that failed is tried again."""
        failures: list[str] = []
        for _ in range(_MEETINGS):
            control = ReplicaControl(replica, timeout_seconds=self._timeout_seconds)
            try:
                group = within(self._timeout_seconds, partial(self._open_group, control, self._kept))
            except Exception as error:
                failures.append(str(error) or type(error).__name__)
                continue
            self._members[name] = _Member(group, control, self._version)
            return self._members[name]
        raise TransferFailed(f"{name} and the learner did not meet: {'; then '.join(failures)}")

    def _end(self, name: str) -> None:
        """End a group, which wakes whoever still waits in it. A failure of that is no one's concern any more."""
        group = self._members.pop(name).group
        try:
            within(self._timeout_seconds, group.shutdown)
        except Exception:
            return


def within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """What `call` returns or raises, in a thread of its own; TimeoutError once `seconds` are over.

    A collective cannot be interrupted: the thread is then left to itself.
    """
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="weight-transfer", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no end within {seconds:g} s")
    return answers[0]
