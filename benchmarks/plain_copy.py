"""What a merge costs without its arithmetic: read every input, write one output. The limit that merge_speed.py shows.

    python benchmarks/plain_copy.py OUT MODEL [MODEL ...]

The same calls as the merge's, `preadv` into a buffer of 512 KiB and `pwrite`, on 2 threads; nothing imported but the
standard library. What is written is the first model.
"""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THREADS = 2
STEP = 1 << 19


def copy(out: Path, models: list[Path]) -> None:
    out.mkdir()
    shards = [sorted(model.glob("*.safetensors")) for model in models]
    parts = []
    for number, first in enumerate(shards[0]):
        target = os.open(out / first.name, os.O_CREAT | os.O_WRONLY)
        os.truncate(target, first.stat().st_size)
        sources = [os.open(files[number], os.O_RDONLY) for files in shards if number < len(files)]
        parts += [(target, sources, start) for start in range(0, first.stat().st_size, STEP)]
    waiting, taking = iter(parts), threading.Lock()

    def work() -> None:
        buffer = memoryview(bytearray(STEP))
        while True:
            with taking:
                part = next(waiting, None)
            if part is None:
                return
            target, sources, start = part
            size = 0
            for source in reversed(sources):
                size = os.preadv(source, [buffer], start)
            os.pwrite(target, buffer[:size], start)

    with ThreadPoolExecutor(THREADS) as executor:
        for done in [executor.submit(work) for _ in range(THREADS)]:
            done.result()
    for target in {target for target, _, _ in parts}:
        os.fsync(target)


if __name__ == "__main__":
    if len(sys.argv) < 3:  # argparse would take 10 ms of what is measured
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    copy(Path(sys.argv[1]), [Path(model) for model in sys.argv[2:]])
