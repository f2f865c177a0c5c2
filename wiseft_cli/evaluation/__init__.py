"""Accuracy of checkpoints, and of the interpolations between two, on image sets."""
