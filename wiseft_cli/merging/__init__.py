"""Weight-space interpolation of checkpoints, without torch."""
