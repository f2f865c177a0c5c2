"""Scripts that make the demo's assets and study its recipe; not in the wheel."""
