"""The demo: a tiny CLIP, handwritten digits, and the wiseft commands run on them."""
