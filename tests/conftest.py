from __future__ import annotations

import os

# As the command line does; it is read when torch is first loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The CUDA kernels are run by Triton's interpreter; it is read when they are first loaded.
os.environ.setdefault("TRITON_INTERPRET", "1")
