"""Where there is no GPU Triton's kernels are interpreted; it asks when imported, so this comes first."""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
