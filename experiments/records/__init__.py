"""Records: their fields, reading and writing, and their origin."""
