"""Convert checkpoints of other libraries to open_clip's tensor names and back."""
