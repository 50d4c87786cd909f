"""Trains the rows of suites that have no record, on this machine or on a cluster."""
