"""One guest under several ways to track its memory, compared."""
