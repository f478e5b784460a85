"""Neuron sets of 420 languages: counting, statistics and figures."""
