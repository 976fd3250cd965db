"""Importing the room costs next to nothing."""

import subprocess
import sys


def test_importing_the_room_loads_none_of_the_heavy_libraries():
    heavy = ("torch", "transformers", "tokenizers", "datasets", "pyarrow", "ray", "vllm")
    code = f"import sys, minillm_ray.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
