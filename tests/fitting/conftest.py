"""Keeps torch to one thread, so that tests do not wait on each other's cores."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
