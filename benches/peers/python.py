"""The same measurements with Python's multiprocessing.Pool; one JSON object on standard output.

usage: python.py QUICK   (QUICK is 0 or 1)
Seconds per task, or seconds until ready; medians, as in table.rs.
"""

import json
import statistics
import sys
import time
from multiprocessing import Pool


def square(x):
    return x * x


def median(runs, measure):
    return statistics.median(measure() for _ in range(runs))


def per_task(count, work):
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / count


def ready(processes):
    start = time.perf_counter()
    # Python's constructor does not wait, so each worker answers once.
    pool = Pool(processes)
    pool.map(square, range(processes), chunksize=1)
    elapsed = time.perf_counter() - start
    pool.terminate()
    pool.join()
    return elapsed


def main():
    quick = sys.argv[1] == "1"
    runs, scale = (3, 10) if quick else (7, 1)
    applies, singles, many = 20_000 // scale, 50_000 // scale, 1_000_000 // scale
    figures = {}
    with Pool(1) as pool:
        pool.apply(square, (1,))

        def apply():
            for x in range(applies):
                pool.apply(square, (x,))

        figures["apply"] = median(runs, lambda: per_task(applies, apply))
    with Pool(2) as pool:
        pool.map(square, range(100))
        figures["map_single"] = median(
            runs, lambda: per_task(singles, lambda: pool.map(square, range(singles), chunksize=1))
        )
        figures["map"] = median(runs, lambda: per_task(many, lambda: pool.map(square, range(many))))
        figures["imap"] = median(
            runs, lambda: per_task(singles, lambda: sum(1 for _ in pool.imap(square, range(singles))))
        )
    figures["ready_2"] = median(runs, lambda: ready(2))
    figures["ready_8"] = median(runs, lambda: ready(8))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
