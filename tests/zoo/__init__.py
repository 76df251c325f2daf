"""Real models and real inputs for tests and benchmarks, found in packages that ``make .zoo`` unpacks; builders for the rest."""
