"""Ways of predicting with a finished run, and their scores."""
