"""Interpolation of two checkpoints, without torch."""
