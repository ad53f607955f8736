"""Teachers: files with cards, released teachers, and the checks that an import must pass."""
