"""Makes what the pages of the book include: tables, sentences with numbers, figures, all from book/results/."""
