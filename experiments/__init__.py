"""What runs: models, pre-update scoring, policies, methods, training, evaluation, and the continual loop."""
