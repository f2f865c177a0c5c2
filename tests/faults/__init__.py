"""File operations that fail while a command writes."""
