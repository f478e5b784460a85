"""What made the numbers of the book: the comparison, the atlas and the experiments. Not part of the wheel."""
