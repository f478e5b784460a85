"""Text by language and split, from any source, packed into windows."""
