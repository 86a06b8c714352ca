"""Tasks and examples, the benchmarks that hold them, prompt pools, and rendering to token ids."""
