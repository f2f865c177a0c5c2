"""Readers of published image sets, one module per family of layouts."""
