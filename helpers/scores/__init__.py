"""How good a classifier is, each score with its interval, and what it has to beat."""
