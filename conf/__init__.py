"""Typed configuration: `schema.py` says what can be set, the YAML folders hold choices."""
