"""Makes `objective_bed`, the helpers beside these tests, importable whatever pytest's import mode."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
