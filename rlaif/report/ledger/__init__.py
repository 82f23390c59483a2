"""The claims ledger: every claim of the paper with what was found here, on one page."""
