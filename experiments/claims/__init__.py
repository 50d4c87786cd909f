"""The papers' claims, and their verdicts from the records."""
