"""What is asked of the networks, and what came out."""
