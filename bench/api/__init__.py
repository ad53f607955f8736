"""What Python programs use: `bench.run`, `bench.evaluate`, `bench.leaderboard`, `bench.load`.

The commands of these names parse flags, call the same functions and print. No torch at import.
"""
