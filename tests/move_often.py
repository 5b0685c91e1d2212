"""`python move_often.py STREAM WHO COUNT START`: once file START exists, try COUNT moves as fast as they go.

Prints how many took effect. Each is a promotion of the next of versions 1 to 3, as `recall promote` writes it.
"""

import sys
import time
from pathlib import Path

from flows.moves import new_entry
from recall.ledger import standing
from tasks import ledger, registry


def main(stream, who, count, start):
    registry.client()
    Path(f"{start}.{who}").touch()
    while not Path(start).exists():
        time.sleep(0.01)
    won = 0
    for _ in range(int(count)):
        entries = ledger.read_ledger(stream)
        version = str(int(standing(entries).champion or 0) % 3 + 1)
        won += ledger.append(stream, new_entry(entries, "promote", version, who, "race", None))
        ledger.follow(stream)
    print(won)


if __name__ == "__main__":
    main(*sys.argv[1:])
