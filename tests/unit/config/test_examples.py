"""The configurations that come with the project are valid, and ask for the GPUs that their comments name."""

from pathlib import Path

import pytest

from minillm_ray.cli.main import main
from minillm_ray.config import load_config
from minillm_ray.config.placement import plan_placement

CONFIGS = Path(__file__).parents[3] / "configs"
GPUS = {"gpt2_dolly": 4, "qwen2.5_7b_to_1.5b": 8, "llama_70b_to_8b": 20}
COMPARISONS = ["quickstart_compare", "smollm2_compare"]


def test_every_configuration_is_tested() -> None:
    """By `train` or by `compare`."""
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*GPUS, "quickstart", "smollm2", *COMPARISONS}


@pytest.mark.parametrize("name", [*GPUS, "quickstart", "smollm2"])
def test_a_dry_run_accepts_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0, with the placement printed."""
    assert main(["train", str(CONFIGS / f"{name}.yaml"), "--dry-run"]) == 0
    assert "placement" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_dry_run_accepts_a_comparison(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0, with MiniLLM among its runs."""
    assert main(["compare", str(CONFIGS / f"{name}.yaml"), "--dry-run"]) == 0
    assert "minillm" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "gpus"), GPUS.items())
def test_it_asks_for_the_gpus_that_its_comment_names(name: str, gpus: int) -> None:
    """Replicas times GPUs, over all roles."""
    plan = plan_placement(load_config(CONFIGS / f"{name}.yaml"), device="gpu")
    assert sum(item.replicas * item.gpus for item in plan) == gpus
    assert f"# GPUs: {gpus} " in (CONFIGS / f"{name}.yaml").read_text()
