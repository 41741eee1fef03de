"""Measurements and diagnostics that are run by hand: never part of the ordinary tests."""
