"""What is trained, the training loop, and how a trained delta is saved and exported."""
