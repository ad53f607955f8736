"""The site: which pages there are, and what is on each."""
