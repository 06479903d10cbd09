"""Alignment terms: what hidden features of the student are compared with."""
