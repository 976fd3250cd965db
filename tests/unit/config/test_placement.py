"""What a run asks of a cluster is counted once, and a refusal says what is asked and what is there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm_ray.config import InputError, load_config
from minillm_ray.config.placement import (
    RolePlacement,
    describe_placement,
    plan_placement,
    require_capacity,
)

WriteRun = Callable[..., Path]


def refusal(plan: tuple[RolePlacement, ...], *, cpus: float, gpus: float) -> str:
    with pytest.raises(InputError) as caught:
        require_capacity(plan, cpus=cpus, gpus=gpus)
    return str(caught.value)


def test_a_plan_has_the_counts_and_sizes_of_the_configuration(write_run: WriteRun) -> None:
    """One entry a role; on a CPU cluster nobody asks for a GPU."""
    changes = {"rollout__replicas": 3, "rollout__cpus": 2, "teacher__cpus": 4, "learner__ranks": 2}
    config = load_config(write_run(**changes))
    assert plan_placement(config, device="cpu") == (
        RolePlacement("rollout", "rollout.replicas", 3, 2, 0),
        RolePlacement("teacher", "teacher.replicas", 1, 4, 0),
        RolePlacement("learner", "learner.ranks", 2, 1, 0),
    )


def test_on_gpus_a_replica_has_one_gpu_for_each_tensor_parallel_part(write_run: WriteRun) -> None:
    """And a learner rank one."""
    config = load_config(write_run(rollout__tensor_parallel=2, teacher__tensor_parallel=4, teacher__replicas=2))
    assert [(item.replicas, item.gpus) for item in plan_placement(config, device="gpu")] == [(1, 2), (2, 4), (1, 1)]


def test_a_teacher_replica_has_tensor_parallel_gpus_for_each_pipeline_stage(write_run: WriteRun) -> None:
    """3 stages of 2 GPUs."""
    config = load_config(write_run(teacher__tensor_parallel=2, teacher__pipeline_parallel=3))
    teacher = plan_placement(config, device="gpu")[1]
    assert (teacher.role, teacher.gpus) == ("teacher", 6)


@pytest.mark.parametrize("name", ["rollout.tensor_parallel", "teacher.tensor_parallel", "teacher.pipeline_parallel"])
def test_a_parallel_replica_needs_gpus(name: str, write_run: WriteRun) -> None:
    """The remedy on CPUs is more threads."""
    role, _, setting = name.partition(".")
    config = load_config(write_run(**{f"{role}__{setting}": 2}))
    with pytest.raises(InputError, match=rf"{name} is 2; expected 1 .* Raise {role}\.cpus"):
        plan_placement(config, device="cpu")


def test_weights_travel_from_gpu_to_gpu_only_where_there_are_gpus(write_run: WriteRun) -> None:
    """The remedy is the transport that works everywhere."""
    config = load_config(write_run(weights__transport="nccl"))
    assert plan_placement(config, device="gpu")
    with pytest.raises(InputError, match=r"weights\.transport is nccl.*Set weights\.transport=object_store"):
        plan_placement(config, device="cpu")


def test_too_many_gpus_names_every_part_of_the_sum(write_run: WriteRun) -> None:
    """GPUs are kept for the whole run, so the roles add up."""
    config = load_config(write_run(rollout__replicas=2, rollout__tensor_parallel=2, learner__ranks=4))
    message = refusal(plan_placement(config, device="gpu"), cpus=64, gpus=8)
    assert "rollout.replicas=2 x 2 + teacher.replicas=1 x 1 + learner.ranks=4 x 1 needs 9 GPUs" in message
    assert "the cluster has 8. Lower the counts or add nodes" in message


def test_as_many_gpus_as_there_are_is_not_too_many(write_run: WriteRun) -> None:
    """The bound itself fits."""
    config = load_config(write_run(rollout__replicas=2, rollout__tensor_parallel=2, learner__ranks=3))
    require_capacity(plan_placement(config, device="gpu"), cpus=1, gpus=8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"rollout__replicas": 5},
            "rollout.replicas=5 x rollout.cpus=1 needs 5 CPUs; the cluster has 2. Set rollout.replicas=2, or add nodes",
        ),
        (
            {"teacher__replicas": 2, "teacher__cpus": 2},
            "teacher.replicas=2 x teacher.cpus=2 needs 4 CPUs; the cluster has 2. Set teacher.replicas=1, or add nodes",
        ),
        (
            {"learner__cpus": 3},
            "learner.ranks=1 x learner.cpus=3 needs 3 CPUs; the cluster has 2. Set learner.cpus=2, or add nodes",
        ),
    ],
)
def test_too_many_cpus_names_what_is_asked_what_is_there_and_what_would_fit(
    changes: dict[str, int], says: str, write_run: WriteRun
) -> None:
    """Fewer replicas where one of them fits, else fewer threads; the remedy is itself accepted."""
    plan = plan_placement(load_config(write_run(**changes)), device="cpu")
    assert refusal(plan, cpus=2, gpus=0) == says
    key, value = says.partition("Set ")[2].removesuffix(", or add nodes").split("=")
    remedied = load_config(write_run(), [f"{key}={value}"])
    require_capacity(plan_placement(remedied, device="cpu"), cpus=2, gpus=0)


def test_roles_that_work_in_turn_may_each_use_every_cpu(write_run: WriteRun) -> None:
    """On two CPUs, two rollout replicas, two teachers and two ranks fit: never all at work at once."""
    config = load_config(write_run(rollout__replicas=2, teacher__replicas=2, learner__ranks=2))
    require_capacity(plan_placement(config, device="cpu"), cpus=2, gpus=0)


counts = st.tuples(*[st.integers(1, 40)] * 6)


@given(counts)
def test_reservations_never_exceed_the_cluster_when_each_role_fits_alone(sizes: tuple[int, ...]) -> None:
    """Ray starts every actor at once: sum of replicas x reserved CPUs <= CPUs, in Ray's units of 1/10000."""
    replicas, cpus = sizes[:3], sizes[3:]
    plan = tuple(RolePlacement(f"role{k}", f"role{k}.replicas", replicas[k], cpus[k], 0) for k in range(len(replicas)))
    cluster = max(item.replicas * item.cpus for item in plan)
    require_capacity(plan, cpus=cluster, gpus=0)
    reserved = sum(item.replicas * round(item.reserved_cpus * 10_000) for item in plan)
    assert 0 < reserved <= cluster * 10_000
    assert all(item.reserved_cpus * 10_000 == pytest.approx(round(item.reserved_cpus * 10_000)) for item in plan)


def test_an_actor_on_a_gpu_reserves_one_cpu() -> None:
    """For the host side of its GPU."""
    assert RolePlacement("learner", "learner.ranks", 1, 8, 1).reserved_cpus == 1.0


def test_a_description_has_one_line_a_role_with_its_unit(write_run: WriteRun) -> None:
    """As --dry-run prints it."""
    config = load_config(write_run(rollout__replicas=2, learner__cpus=3))
    on_cpu = describe_placement(plan_placement(config, device="cpu")).splitlines()
    assert [line.split() for line in on_cpu] == [
        ["rollout", "2", "x", "1", "CPU"],
        ["teacher", "1", "x", "1", "CPU"],
        ["learner", "1", "x", "3", "CPU"],
    ]
    assert "2 x 1 GPU" in describe_placement(plan_placement(config, device="gpu"))
