"""Results for Weights & Biases, and the panels of its workspace."""
