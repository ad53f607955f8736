"""Finished runs as small files that another checkout takes into its store."""
