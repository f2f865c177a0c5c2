"""Class names and prompt templates, read as data."""
