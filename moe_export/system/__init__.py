"""The machine: memory, disk, processes and progress."""
