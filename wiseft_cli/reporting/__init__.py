"""Results lines, intervals, tables and plots, without torch."""
