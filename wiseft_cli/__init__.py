"""wiseft: from a zero-shot CLIP-like model to a robustly fine-tuned one (arXiv 2109.01903)."""

__version__ = "0.1.0"
