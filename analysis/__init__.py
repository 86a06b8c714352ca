"""What is read out of finished runs: matrices, metrics, intervals, correlations, tables and figures."""
