"""Tasks, metrics and the runner that measures a trained model on held-out data."""
