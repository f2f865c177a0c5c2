"""Devices, precision, memory, disk space, and the processes that share a run."""
