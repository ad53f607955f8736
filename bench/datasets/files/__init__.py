"""The files of data sets: downloaded, imported, verified, read."""
