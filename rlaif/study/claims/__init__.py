"""Claims: hypotheses stated before a run, each with its test, its smallest effect of interest and its verdict."""
