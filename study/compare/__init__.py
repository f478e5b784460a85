"""Comparison of all training methods under equal conditions."""
