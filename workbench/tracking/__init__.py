"""How the pages of a file are tracked: folios, a light map, struct pages, and who is told when they go."""
