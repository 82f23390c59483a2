"""Effects that a claim is about: weighted sums of arms' means, verdicts on them, and what could have been found."""
