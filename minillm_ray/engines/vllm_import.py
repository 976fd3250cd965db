"""vLLM's engine class, imported while Python's garbage collector stands still.

The imports make a million objects and no garbage, but the collector looks through all of them again and again, there
and whenever vLLM calls it while it builds an engine: a fifth of an engine's start.
"""

import gc
from typing import Any


def llm_engine_class() -> Any:
    """What this process has imported by then is left alone by the collector for good."""
    works = gc.isenabled()
    gc.disable()
    try:
        from vllm.v1.engine.llm_engine import LLMEngine
    finally:
        if works:
            gc.enable()
    gc.freeze()
    return LLMEngine
