"""Choosing among a suite's rows by short trainings, on validation."""
