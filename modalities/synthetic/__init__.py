"""Data drawn in code, and the readers that tell whether generated media show what was asked for."""
