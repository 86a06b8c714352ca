"""Stages, the store that remembers them, and the engine that runs them."""
