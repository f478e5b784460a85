"""Scores of a model and of a trained delta: gain, retention, drift, tasks, and what changed inside."""
