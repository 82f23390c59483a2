"""The jobs of a sweep, as its ledger has them: the table of the terminal and of the page."""
