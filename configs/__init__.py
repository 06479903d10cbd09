"""Configurations: the schema, the method table, and one YAML file per experiment."""
