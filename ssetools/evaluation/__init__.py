"""Scores of a model and of a trained delta: gain, retention, drift, and what changed inside."""
