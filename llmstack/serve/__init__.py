"""Pages that answer: a person's verdicts on pairs of replies, and how far several persons agree."""
