"""Runs: one folder for each, from what was asked to masks, scores and a report."""
