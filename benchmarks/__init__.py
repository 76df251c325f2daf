"""What the tables of the README are made by. Run from the root: ``make bench``, or ``PYTHONPATH=.:tests python -m benchmarks.zoo``."""
