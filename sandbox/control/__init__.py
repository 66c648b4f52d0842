"""How running sandboxes are found: the private folder of each run."""
