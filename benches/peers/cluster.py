"""The measurements of many machines with Ray's Pool and dask.distributed; one JSON object on standard output.

usage: cluster.py QUICK   (0 or 1)
Each has two workers on this machine. Figures are medians, in seconds; those of many tasks are seconds for each task. What is
not installed has none.
"""

import contextlib
import json
import os
import statistics
import sys
import time

QUICK = len(sys.argv) > 1 and sys.argv[1] == "1"
RUNS = 3 if QUICK else 5
MIB = 1 << 20


def square(x):
    return x * x


def work(nanoseconds):
    end = time.perf_counter_ns() + nanoseconds
    while time.perf_counter_ns() < end:
        pass
    return nanoseconds


def length(data):
    return len(data)


def spent(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def median(action, runs=RUNS):
    return statistics.median(spent(action) for _ in range(runs))


def figures(apply, chunks, singles):
    """`chunks` and `singles` map a function over a list: in default chunks, or one by one."""
    many = list(range(20_000 if QUICK else 100_000))
    few = many[:2000]
    chunks(square, few)
    singles(square, few)
    data = bytes(64 * MIB)
    apply(length, data)
    return {
        "apply": median(lambda: apply(square, 3), 200 if QUICK else 1000),
        "chunks": median(lambda: chunks(square, many)) / len(many),
        "singles": median(lambda: singles(square, few)) / len(few),
        "work_1": median(lambda: chunks(work, [1_000_000] * 2000)) / 2000,
        "work_10": median(lambda: chunks(work, [10_000_000] * 200)) / 200,
        "argument": median(lambda: apply(length, data)),
    }


def with_ray():
    import ray
    from ray.util.multiprocessing import Pool

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    pool = Pool(2)
    measured = figures(
        lambda function, x: pool.apply(function, (x,)),
        pool.map,
        lambda function, xs: pool.map(function, xs, chunksize=1),
    )
    ray.shutdown()
    return measured | {"version": ray.__version__}


def with_dask():
    import dask.bag
    import distributed

    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    )
    client = distributed.Client(cluster)
    measured = figures(
        lambda function, x: client.submit(function, x, pure=False).result(),
        lambda function, xs: dask.bag.from_sequence(xs, npartitions=8).map(function).compute(),
        lambda function, xs: client.gather(client.map(function, xs, pure=False)),
    )
    client.close()
    cluster.close()
    return measured | {"version": distributed.__version__}


def main():
    found = {}
    with contextlib.redirect_stdout(sys.stderr):
        for name, measure in [("ray", with_ray), ("dask", with_dask)]:
            try:
                found[name] = measure()
            except ImportError:
                found[name] = {}
    print(json.dumps(found))
    sys.stdout.flush()
    # Do not wait for their threads.
    os._exit(0)


if __name__ == "__main__":
    main()
