"""Records: what they hold, how they are written, found and printed."""
