"""SIMPLER: the Google-robot tasks, in a simulator behind a pipe."""
