"""A Ray cluster that does not exist: it says how large it is, and writes down who starts it and who ends it."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import ray


@dataclass
class ScriptedCluster:
    """resources: what the cluster has. refuses: raised by ray.init. calls: names in order, with init's arguments."""

    resources: dict[str, float] = field(default_factory=lambda: {"CPU": 4.0})
    refuses: Exception | None = None
    calls: list[str] = field(default_factory=list)
    init_arguments: dict[str, Any] = field(default_factory=dict)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In place of Ray's own functions. Work beyond starting and ending the cluster fails the test."""
        monkeypatch.setattr(ray, "init", self._init)
        monkeypatch.setattr(ray, "shutdown", lambda: self.calls.append("shutdown"))
        monkeypatch.setattr(ray, "cluster_resources", lambda: dict(self.resources))
        monkeypatch.setattr(ray, "put", self._forbidden)
        monkeypatch.setattr("os.cpu_count", lambda: int(self.resources["CPU"]))

    def _init(self, **arguments: Any) -> None:
        self.calls.append("init")
        self.init_arguments = arguments
        if self.refuses:
            raise self.refuses

    def _forbidden(self, value: object) -> None:
        raise AssertionError(f"the run went on to ray.put({type(value).__name__}) and should have been refused")
