"""Experiments of papers, made small enough for two cores."""
