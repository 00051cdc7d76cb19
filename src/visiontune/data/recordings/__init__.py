"""Recordings of neurons: what was shown and how each unit answered, bin by bin."""
