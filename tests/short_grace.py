"""`python -m bench`, with workers that count as dead after seconds and not after a minute.

Workers run this file too, under another name, as multiprocessing imports it anew.
"""

from bench.cli import main
from bench.tuning import storage

storage.HEARTBEAT_SECONDS, storage.GRACE_SECONDS = 1, 5

if __name__ == "__main__":
    main()
