"""Turns results into the tables, figures and numbers of the book's pages."""

import sys
from pathlib import Path

# The study is not installed: it lies beside this folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
