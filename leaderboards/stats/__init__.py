"""Statistics of rows and tasks, without any knowledge of tables."""
