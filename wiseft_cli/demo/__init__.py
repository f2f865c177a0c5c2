"""The embedded tiny CLIP, its digits, and the pipeline as real commands."""
