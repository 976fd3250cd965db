"""What a reader unpacks is what was packed, byte for byte, without a copy, or nothing at all."""

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted.models import VOCABULARY, tiny
from torch import Tensor

from minillm_ray.config.errors import RunError
from minillm_ray.learner.student import Student
from minillm_ray.weights.buffers import ObjectStorePublisher, WeightManifest, WeightMismatchError, plan_layout, unpack

Named = list[tuple[str, Tensor]]


def some_tensors() -> Named:
    """Floats of two widths, integers, a scalar, an empty tensor, one that is not contiguous."""
    torch.manual_seed(0)
    return [
        ("matrix", torch.randn(5, 7)),
        ("half", torch.randn(3, 3).bfloat16()),
        ("ids", torch.arange(9)),
        ("flags", torch.tensor([True, False])),
        ("scalar", torch.tensor(3.5)),
        ("empty", torch.zeros(0, 4)),
        ("transposed", torch.randn(4, 6).T),
    ]


def packed(tensors: Named, *, dtype: torch.dtype, bucket_bytes: int = 1 << 20) -> tuple[WeightManifest, list]:
    """The manifest, and a copy of each buffer, as the object store makes one."""
    return stored(ObjectStorePublisher(plan_layout(tensors, dtype=dtype, bucket_bytes=bucket_bytes)), tensors)


def stored(publisher: ObjectStorePublisher, tensors: Named) -> tuple[WeightManifest, list]:
    *buffers, manifest = [
        np.array(item) if isinstance(item, np.ndarray) else item for item in stream(publisher, tensors)
    ]
    return manifest, buffers


def stream(publisher: ObjectStorePublisher, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[Any]:
    return publisher.publish(tensors, version=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bucket_bytes", [1, 128, 1 << 20])
def test_what_is_packed_is_what_is_unpacked(dtype: torch.dtype, bucket_bytes: int) -> None:
    """Floats in the published dtype, everything else as it is; names, order, shapes and values."""
    tensors = some_tensors()
    read = list(unpack(*packed(tensors, dtype=dtype, bucket_bytes=bucket_bytes)))
    assert [name for name, _ in read] == [name for name, _ in tensors]
    for (_, sent), (_, got) in zip(tensors, read, strict=True):
        expected = sent.to(dtype) if sent.is_floating_point() else sent
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert torch.equal(got, expected)


@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    bucket_bytes=st.integers(1, 400),
)
def test_tensors_lie_apart_aligned_and_inside_their_buffer(sizes: list[int], bucket_bytes: int) -> None:
    """Every offset is a multiple of 64; no two overlap; only a lone tensor makes a buffer larger than its bucket."""
    layout = plan_layout(
        [(f"t{k}", torch.zeros(size)) for k, size in enumerate(sizes)], dtype=torch.float32, bucket_bytes=bucket_bytes
    )
    assert [entry.bucket for entry in layout.entries] == sorted(entry.bucket for entry in layout.entries)
    for number, num_bytes in enumerate(layout.bucket_bytes):
        inside = [entry for entry in layout.entries if entry.bucket == number]
        used = [entry for entry in inside if entry.size_bytes]
        end = 0
        for entry in inside:
            assert entry.offset % 64 == 0
            assert entry.offset >= end
            end = entry.offset + entry.size_bytes
        assert end <= num_bytes
        if len(used) > 1:
            assert used[-1].offset + used[-1].size_bytes <= bucket_bytes


def test_a_tensor_larger_than_a_bucket_has_a_buffer_of_its_own() -> None:
    """And those before and after it keep to theirs."""
    tensors = [("a", torch.zeros(4)), ("big", torch.zeros(100)), ("b", torch.zeros(4)), ("c", torch.zeros(4))]
    layout = plan_layout(tensors, dtype=torch.float32, bucket_bytes=128)
    assert [entry.bucket for entry in layout.entries] == [0, 1, 2, 2]
    assert layout.bucket_bytes == (64, 448, 128)


def test_a_layout_is_the_same_for_every_version() -> None:
    """It depends on names, shapes and dtypes alone, so it is planned once."""
    first, second = some_tensors(), [(name, torch.zeros_like(tensor)) for name, tensor in some_tensors()]
    plan = {"dtype": torch.float32, "bucket_bytes": 200}
    assert plan_layout(first, **plan) == plan_layout(second, **plan)


def test_readers_share_memory_with_the_buffers() -> None:
    """Nothing is copied on the way to the engine: each tensor starts at its offset in its buffer."""
    manifest, buffers = packed(some_tensors(), dtype=torch.float32, bucket_bytes=128)
    assert len(buffers) > 1
    for entry, (_, tensor) in zip(manifest.layout.entries, unpack(manifest, buffers), strict=True):
        if entry.size_bytes:
            assert tensor.data_ptr() == buffers[entry.bucket].ctypes.data + entry.offset


def test_read_only_buffers_are_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    """As Ray's object store hands them out."""
    manifest, buffers = packed(some_tensors(), dtype=torch.float32)
    for buffer in buffers:
        buffer.flags.writeable = False
    read = dict(unpack(manifest, buffers))
    assert torch.equal(read["matrix"], some_tensors()[0][1])
    assert not recwarn.list


def test_a_publisher_holds_one_buffer_at_a_time() -> None:
    """Every buffer of every version is filled in the same memory, and tensors are asked for as they are needed."""
    tensors = [(f"t{k}", torch.full((16,), float(k))) for k in range(6)]
    publisher = ObjectStorePublisher(plan_layout(tensors, dtype=torch.float32, bucket_bytes=128))
    asked: list[str] = []

    def lazily() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            asked.append(name)
            yield name, tensor

    first = stream(publisher, lazily())
    starts = []
    for number in range(publisher.num_buffers):
        starts.append(next(first).ctypes.data)
        assert asked == [f"t{k}" for k in range(2 * number + 2)]
    starts += [item.ctypes.data for item in stream(publisher, tensors) if isinstance(item, np.ndarray)]
    assert publisher.num_buffers == 3
    assert len(starts) == 6
    assert len(set(starts)) == 1


def test_a_version_does_not_depend_on_what_was_published_before() -> None:
    """What an earlier one left in the memory that buffers are filled in is overwritten wherever a tensor lies."""
    publisher = ObjectStorePublisher(plan_layout(some_tensors(), dtype=torch.float32, bucket_bytes=200))
    stored(publisher, [(name, torch.ones_like(tensor)) for name, tensor in some_tensors()])
    read = dict(unpack(*stored(publisher, some_tensors())))
    assert all(torch.equal(read[name], tensor.to(read[name].dtype)) for name, tensor in some_tensors())


def test_packing_copies_so_later_training_does_not_reach_a_published_version() -> None:
    """The buffers of version 3 stay those of version 3."""
    tensors = some_tensors()
    manifest, buffers = packed(tensors, dtype=torch.float32)
    before = tensors[0][1].clone()
    tensors[0][1].add_(1.0)
    assert torch.equal(dict(unpack(manifest, buffers))["matrix"], before)


@pytest.mark.parametrize("where", [0, -1])
@pytest.mark.parametrize("bucket", [0, 1])
def test_other_bytes_than_were_published_are_refused_before_the_first_tensor(where: int, bucket: int) -> None:
    """One bit anywhere, in any buffer: the call itself raises, so that no engine holds half a version."""
    manifest, buffers = packed(some_tensors(), dtype=torch.float32, bucket_bytes=200)
    buffers[bucket][where] ^= 1
    with pytest.raises(WeightMismatchError, match=rf"buffer {bucket} of weight version 3 arrived with hash"):
        unpack(manifest, buffers)


def test_buffers_in_another_order_or_number_are_refused() -> None:
    """Two that were swapped do not have each other's hash; one that is missing is missed."""
    manifest, buffers = packed(some_tensors(), dtype=torch.float32, bucket_bytes=200)
    assert len(buffers) > 1
    with pytest.raises(WeightMismatchError):
        unpack(manifest, [buffers[1], buffers[0], *buffers[2:]])
    with pytest.raises(ValueError, match="shorter"):
        unpack(manifest, buffers[:-1])


def test_a_mismatch_ends_a_run_with_a_message_and_crosses_processes() -> None:
    """It is a RunError, and it survives pickling, as every error that leaves an actor must."""
    error = pickle.loads(pickle.dumps(WeightMismatchError("buffer 0")))
    assert isinstance(error, WeightMismatchError)
    assert isinstance(error, RunError)
    assert str(error) == "buffer 0"


def test_tensors_in_another_order_than_the_layouts_are_refused() -> None:
    """Also one of another shape, one too many or one too few."""
    tensors = some_tensors()
    layout = plan_layout(tensors, dtype=torch.float32, bucket_bytes=200)
    twins = [("first", torch.zeros(2)), ("second", torch.ones(2))]
    two = ObjectStorePublisher(plan_layout(twins, dtype=torch.float32, bucket_bytes=200))
    publisher = ObjectStorePublisher(layout)
    with pytest.raises(ValueError, match=r"second \(2,\) came where the layout has first \(2,\)"):
        stored(two, twins[::-1])
    with pytest.raises(ValueError, match=r"half \(3, 3\) came where the layout has matrix \(5, 7\)"):
        stored(publisher, [tensors[1], tensors[0], *tensors[2:]])
    with pytest.raises(ValueError, match=r"matrix \(7, 5\) came where the layout has matrix \(5, 7\)"):
        stored(publisher, [("matrix", tensors[0][1].T), *tensors[1:]])
    with pytest.raises(ValueError, match=r"nothing .* came where the layout has transposed"):
        stored(publisher, tensors[:-1])
    with pytest.raises(ValueError, match="more came after the last tensor of the layout"):
        stored(publisher, [*tensors, ("more", torch.zeros(1))])


def test_a_manifest_travels_with_its_version_and_layout() -> None:
    """It is picklable, and equal after the journey; another version is another manifest."""
    manifest, buffers = packed(some_tensors(), dtype=torch.bfloat16)
    arrived = pickle.loads(pickle.dumps(manifest))
    assert arrived == manifest
    assert arrived != replace(manifest, version=4)
    assert len(list(unpack(arrived, [np.array(buffer) for buffer in buffers]))) == len(some_tensors())


@pytest.mark.parametrize("tied", [True, False])
def test_a_students_weights_arrive_under_every_name_that_a_sampler_may_ask_for(tied: bool) -> None:
    """A tied head comes under both its names; loading what arrived gives the same logits."""
    student = Student(tiny("llama", tie_word_embeddings=tied), vocabulary_size=VOCABULARY)
    manifest, buffers = packed(list(student.named_weights()), dtype=torch.float32, bucket_bytes=1 << 12)
    arrived = dict(unpack(manifest, buffers))
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(arrived)
    assert torch.equal(arrived["lm_head.weight"], arrived["model.embed_tokens.weight"]) == tied
    copy = tiny("llama", seed=1, tie_word_embeddings=tied)
    copy.load_state_dict(arrived)
    tokens = torch.arange(8)[None]
    assert torch.equal(copy(tokens).logits, student.model(tokens).logits)
