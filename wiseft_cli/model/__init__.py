"""Everything that touches open_clip: encoders, tokenizers, transforms, heads."""
