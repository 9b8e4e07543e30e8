"""Checks and counts of the Arm kernels in emulation."""
