"""The model room: loading a model, and everything that is computed with one."""
