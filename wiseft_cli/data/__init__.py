"""Labelled image sets and their label spaces."""
