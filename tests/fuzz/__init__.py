"""Fuzzing of everything that parses a file or an option."""
