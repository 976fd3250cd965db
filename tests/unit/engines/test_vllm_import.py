"""Python's garbage collector after vLLM's import is as it was before."""

import gc
import sys
from types import SimpleNamespace

import pytest

from minillm_ray.engines.vllm_import import llm_engine_class

MODULES = ("vllm", "vllm.v1", "vllm.v1.engine", "vllm.v1.engine.llm_engine")


@pytest.fixture(params=[True, False], ids=["collector on", "collector off"])
def works(request: pytest.FixtureRequest) -> bool:
    """Whether the collector works before the import; it does after the test, with nothing frozen."""
    if not request.param:
        gc.disable()
    request.addfinalizer(gc.enable)
    request.addfinalizer(gc.unfreeze)
    return bool(request.param)


def _with_engine(monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, module)


def test_the_collector_goes_on_as_it_was(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    """And no longer looks through what was imported."""
    collected = []

    class Module(SimpleNamespace):
        @property
        def LLMEngine(self) -> type:
            collected.append(gc.isenabled())
            return int

    _with_engine(monkeypatch, Module())
    assert llm_engine_class() is int
    assert collected == [False]
    assert gc.isenabled() == works
    assert gc.get_freeze_count() > 0


def test_the_collector_goes_on_where_vllm_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    _with_engine(monkeypatch, None)
    with pytest.raises(ImportError):
        llm_engine_class()
    assert gc.isenabled() == works
