"""What Weights & Biases gets, and how its workspace shows it."""
