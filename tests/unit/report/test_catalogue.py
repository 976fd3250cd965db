"""Every metric has a place, and none is drawn that a phase does not have."""

from collections.abc import Sequence

from minillm_ray.report.catalogue import FigurePlan, other_plans_for, plans_for
from minillm_ray.telemetry.declarations import METRICS


def metrics_of(plans: Sequence[FigurePlan]) -> list[str]:
    return [curve.metric for plan in plans for curve in plan.curves]


def test_a_figure_has_the_curves_of_the_phase_and_is_left_out_without_any() -> None:
    (plan,) = plans_for(["objective/loss/total", "objective/loss/single_step"])
    assert (plan.title, [curve.label for curve in plan.curves]) == ("Loss by term", ["total", "single step"])
    assert plans_for(["step", "phase", "time"]) == []


def test_every_declared_metric_is_drawn_once() -> None:
    """All but the tenths of the response between the three that are."""
    drawn = metrics_of(plans_for(METRICS)) + metrics_of(other_plans_for(METRICS))
    assert len(drawn) == len(set(drawn))
    assert {metric for metric in METRICS if metric not in drawn} == {
        f"objective/kl_nats_per_token/decile_{tenth}" for tenth in (1, 2, 3, 5, 6, 7, 8)
    }


def test_idle_time_is_drawn_by_role_in_the_colours_that_the_roles_have_elsewhere() -> None:
    """The same role, the same colour, as in the time of a step."""
    roles = ("rollout", "teacher", "learner")
    (idle,) = plans_for([f"pipeline/waiting_input_seconds/{role}" for role in roles])
    assert [curve.label for curve in idle.curves] == list(roles)
    (step,) = plans_for(["rollout/generate_seconds/total", "teacher/score_seconds/total", "learner/step_seconds/total"])
    assert [curve.colour for curve in idle.curves] == [curve.colour for curve in step.curves]


def test_rouge_l_is_drawn_under_whatever_name_it_has() -> None:
    (plan,) = plans_for(["evaluation/rouge_l/validation"])
    assert (plan.title, plan.curves[0].label) == ("Rouge-L", "validation")


def test_statistics_of_one_quantity_share_a_figure() -> None:
    (plan,) = other_plans_for(["objective/ratio/mean", "objective/ratio/max"])
    assert (plan.title, plan.unit) == ("Ratio", "objective")
    assert [curve.label for curve in plan.curves] == ["mean", "max"]
