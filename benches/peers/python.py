"""The same measurements with Python's own pools; one JSON object on standard output.

usage: python.py QUICK GROUP...   (QUICK is 0 or 1; a group is latency, throughput, channel,
                                   efficiency, payload, data or start)
Figures are medians, in seconds; those of tasks are seconds for each task. Needs nothing but the
standard library.
"""

import json
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import Pool, Process, Queue

QUICK = len(sys.argv) > 1 and sys.argv[1] == "1"
RUNS = 3 if QUICK else 5
KIB = 1024
MIB = 1024 * KIB


def square(x):
    return x * x


def work(nanoseconds):
    end = time.perf_counter_ns() + nanoseconds
    while time.perf_counter_ns() < end:
        pass
    return nanoseconds


def echo(data):
    return data


def at_of(table, at):
    return at ^ table[at & 0xFF]


def scaled(count):
    return count // 10 if QUICK else count


def spent(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(measure):
    return statistics.median(measure() for _ in range(RUNS))


def per_task(count, work):
    return median(lambda: spent(work) / count)


def consume(iterator):
    for _ in iterator:
        pass


def latency(figures):
    cpus = sorted(os.sched_getaffinity(0))
    applies = scaled(20_000)

    def apply(pool):
        for x in range(applies):
            pool.apply(square, (x,))

    os.sched_setaffinity(0, cpus[:1])
    with Pool(1) as pool:
        pool.apply(square, (1,))
        figures["apply_one_core"] = per_task(applies, lambda: apply(pool))
    os.sched_setaffinity(0, cpus)
    if len(cpus) > 1:
        with Pool(1) as pool:
            pid = pool.apply(os.getpid)
            os.sched_setaffinity(pid, cpus[1:2])
            os.sched_setaffinity(0, cpus[:1])
            figures["apply_two_cores"] = per_task(applies, lambda: apply(pool))
            os.sched_setaffinity(0, cpus)
    with Pool(1) as pool:

        def paused():
            total = 0
            for x in range(applies // 10):
                work(100_000)
                total += spent(lambda: pool.apply(square, (x,)))
            return total / (applies // 10)

        figures["apply_paused"] = median(paused)


def throughput(figures):
    singles, many = scaled(50_000), scaled(1_000_000)
    with Pool(2) as pool:
        pool.map(square, range(1000))

        def apply_async():
            for result in [pool.apply_async(square, (x,)) for x in range(singles)]:
                result.get()

        figures["apply_async"] = per_task(singles, apply_async)
        figures["map_1"] = per_task(singles, lambda: pool.map(square, range(singles), chunksize=1))
        figures["imap_1"] = per_task(singles, lambda: consume(pool.imap(square, range(singles))))
        figures["imap_unordered_1"] = per_task(
            singles, lambda: consume(pool.imap_unordered(square, range(singles)))
        )
        figures["map_default"] = per_task(many, lambda: pool.map(square, range(many)))
    with ProcessPoolExecutor(2) as pool:
        consume(pool.map(square, range(1000)))
        figures["futures_1"] = per_task(
            singles // 2, lambda: consume(pool.map(square, range(singles // 2), chunksize=1))
        )
        figures["futures_1000"] = per_task(
            many, lambda: consume(pool.map(square, range(many), chunksize=1000))
        )


def say(count, queue):
    for x in range(count):
        queue.put((x, x ^ 0xFFFFFFFFFFFFFFFF))


def channel(figures):
    each = scaled(200_000)

    def receive():
        queue = Queue()
        senders = [Process(target=say, args=(each, queue)) for _ in range(2)]
        for sender in senders:
            sender.start()
        for _ in range(2 * each):
            queue.get()
        for sender in senders:
            sender.join()

    figures["channel"] = per_task(2 * each, receive)


def efficiency(figures):
    with Pool(2) as pool:
        pool.map(work, [1000] * 1000)
        for us in (1, 10, 100, 1000):
            # One second of useful time, or a fifth with QUICK; less for short tasks one by one, which take far longer.
            total = 200_000 if QUICK else 1_000_000
            for key, chunksize, most in (("default", None, 200_000), ("one", 1, scaled(50_000))):
                count = min(total // us, most)
                tasks = [us * 1000] * count
                figures[f"efficiency_{key}_{us}"] = median(
                    lambda: spent(lambda: pool.map(work, tasks, chunksize=chunksize))
                ) / count


def payload(figures):
    with Pool(2) as pool:
        pool.map(square, range(1000))
        for size in (64 * KIB, MIB, 16 * MIB, 64 * MIB):
            times = max(1, scaled(200) * 64 * KIB // size)
            data = bytes(size)

            def echoes():
                for _ in range(times):
                    pool.apply(echo, (data,))

            figures[f"echo_{size}"] = per_task(times, echoes)


def data(figures):
    table = bytes(10 * MIB)
    with Pool(2) as pool:
        pool.map(square, range(1000))
        many, few = 10_000, scaled(100)
        bound = partial(at_of, table)
        figures["partial_default"] = per_task(many, lambda: pool.map(bound, range(many)))
        figures["partial_1"] = per_task(few, lambda: pool.map(bound, range(few), chunksize=1))
        for size in (64 * KIB, MIB, 16 * MIB, 64 * MIB):
            bound = partial(at_of, bytes(size))
            figures[f"bound_{size}"] = per_task(1000, lambda: pool.map(bound, range(1000)))


def start(figures):
    def ready(processes):
        start = time.perf_counter()
        # Python's constructor does not wait for the workers, so let each of them answer once.
        pool = Pool(processes)
        pool.map(square, range(processes), chunksize=1)
        elapsed = time.perf_counter() - start
        pool.terminate()
        pool.join()
        return elapsed

    for processes in (2, 4, 8, 16, 32):
        figures[f"ready_{processes}"] = median(lambda: ready(processes))


def main():
    groups = {
        "latency": latency,
        "throughput": throughput,
        "channel": channel,
        "efficiency": efficiency,
        "payload": payload,
        "data": data,
        "start": start,
    }
    figures = {"version": platform.python_version()}
    for name in sys.argv[2:]:
        if name in groups:
            groups[name](figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
