"""Questions and translation, scored by lm-eval."""
