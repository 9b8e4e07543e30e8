"""Access to the machine: memory, disk, threads and processes, and reports of progress."""
