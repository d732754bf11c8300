"""The program under test, for the pools of Python: see subject.rs, of which this is the same.

usage: subject.py POOL FAULT
"""

import atexit
import concurrent.futures
import ctypes
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time

import loky
import pebble

INPUTS = 20
FAULTY = 6
TASK = 0.01
TIME_LIMIT = 3
BATCH = 8
CLOSE = 12
FORCE = 3
LATER = 100
FOR_EVER = 3600


def report(line):
    with open(os.environ["FAULTS_REPORT"], "a") as file:
        file.write(json.dumps(line) + "\n")


def report_and_wait(line):
    report(line)
    sys.stdin.readline()


# The task, and what can go wrong in it. What a C library would do is done with C's own functions.


class CantPass(Exception):
    """Like many exceptions, it takes two arguments, passes one to Exception, and can't be unpickled."""

    def __init__(self, one, two):
        super().__init__(one)


class Unwritable:
    def __reduce__(self):
        raise ValueError("on purpose")


def explode():
    raise ValueError("on purpose")


class Unreadable:
    def __reduce__(self):
        return explode, ()


class ExitsInDestructor:
    def __del__(self):
        c().exit(5)


def c():
    return ctypes.CDLL(None)


def lower(which, to):
    resource.setrlimit(which, (to, to))


kept = []


def work(x, fault):
    if fault == "program-killed":
        report("began")
        time.sleep(FOR_EVER)
    time.sleep(TASK)
    if x == FAULTY:
        if fault == "unwritable":
            return Unwritable()
        if fault == "unreadable":
            return Unreadable()
        commit(fault)
    return x * x


def commit(fault):
    me = os.getpid()
    match fault:
        case "nothing" | "killed-while-idle" | "all-killed-while-idle":
            pass
        case "panic":
            raise ValueError("on purpose")
        case "panic-that-cant-pass":
            raise CantPass("on", "purpose")
        case "exit-zero":
            c().exit(0)
        case "exit-three":
            c().exit(3)
        case "exit-in-destructor":
            ExitsInDestructor()
        case "abort":
            c().abort()
        case "segfault":
            ctypes.memset(0, 1, 1)
        case "stack-overflow":
            # It recurses for each parenthesis.
            c().regcomp(ctypes.create_string_buffer(256), b"(" * 1_000_000, 1)
        case "kill":
            os.kill(me, signal.SIGKILL)
        case "term":
            os.kill(me, signal.SIGTERM)
        case "stop":
            os.kill(me, signal.SIGSTOP)
        case "out-of-memory":
            lower(resource.RLIMIT_AS, 1 << 30)
            bytearray(2 << 30)
        case "leak":
            for _ in range(32):
                kept.append(b"x" * (32 << 20))
                time.sleep(0.035)
        case "sleep":
            time.sleep(FOR_EVER)
        case "close-standard-streams":
            os.closerange(0, 3)
        case "close-all":
            os.closerange(0, 1024)
        case "rubbish-into-all":
            for fd in range(3, 1024):
                try:
                    os.write(fd, b"\xa5" * 4096)
                except OSError:
                    pass
        case "lower-limits":
            lower(resource.RLIMIT_NOFILE, 3)
            lower(resource.RLIMIT_FSIZE, 0)
            lower(resource.RLIMIT_NPROC, 0)
        case "set-sid":
            c().setsid()
        case "change-directory":
            os.chdir("/proc")
        case "leave-thread":
            threading.Thread(target=spin).start()
        case "leave-grandchild":
            leave_grandchild()
        case "die-beside-grandchild":
            leave_grandchild()
            os.kill(me, signal.SIGKILL)
        case "exit-handler-hangs":
            atexit.register(time.sleep, FOR_EVER)
        case _:
            raise NotImplementedError(fault)


def spin():
    while True:
        pass


def leave_grandchild():
    if os.fork() == 0:
        time.sleep(FOR_EVER)
        os._exit(0)


# The pools: two workers, with the settings that their documentation recommends. `get` returns the result of a call that
# is ready, `close` asks the pool to finish, `force` to drop everything.


class Futures:
    def submit(self, x, fault):
        return self.executor().submit(work, x, fault)

    def is_ready(self, future, timeout):
        return bool(concurrent.futures.wait([future], timeout).done)

    def get(self, future):
        return future.result()


class ConcurrentFutures(Futures):
    def __init__(self):
        self.pool = concurrent.futures.ProcessPoolExecutor(2)
        # From Python 3.14 on.
        self.force = getattr(self.pool, "kill_workers", None)

    def executor(self):
        return self.pool

    def close(self):
        self.pool.shutdown()


class Loky(Futures):
    def executor(self):
        # The same one again, or a new one if that one is broken.
        self.pool = loky.get_reusable_executor(max_workers=2)
        return self.pool

    def close(self):
        self.pool.shutdown()

    def force(self):
        self.pool.shutdown(kill_workers=True)


class Pebble(Futures):
    def __init__(self):
        self.pool = pebble.ProcessPool(max_workers=2)

    def submit(self, x, fault):
        return self.pool.schedule(work, args=(x, fault), timeout=TIME_LIMIT)

    def close(self):
        self.pool.close()
        self.pool.join()

    def force(self):
        self.pool.stop()
        self.pool.join()


class Multiprocessing:
    def __init__(self):
        self.pool = multiprocessing.Pool(2)

    def submit(self, x, fault):
        return self.pool.apply_async(work, (x, fault))

    def is_ready(self, result, timeout):
        result.wait(timeout)
        return result.ready()

    def get(self, result):
        return result.get()

    def close(self):
        self.pool.close()
        self.pool.join()

    def force(self):
        self.pool.terminate()
        self.pool.join()


POOLS = {
    "multiprocessing": Multiprocessing,
    "concurrent-futures": ConcurrentFutures,
    "loky": Loky,
    "pebble": Pebble,
}


def batch(pool, first, fault):
    end = time.monotonic() + BATCH
    calls = []
    for x in range(first, first + INPUTS):
        try:
            calls.append((x, pool.submit(x, fault), None))
        except Exception as error:
            calls.append((x, None, error))
    return [outcome(pool, *call, end) for call in calls]


def outcome(pool, x, call, error, end):
    if error is not None:
        return {"error": repr(error)}
    if not pool.is_ready(call, max(0, end - time.monotonic())):
        return "no_answer"
    try:
        return "right" if pool.get(call) == x * x else "wrong"
    except TimeoutError as error:
        return {"time_limit": repr(error)}
    # CancelledError is not an Exception.
    except (Exception, concurrent.futures.CancelledError) as error:
        return {"error": repr(error)}


def ends(end, limit):
    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(limit)
    return not thread.is_alive()


def close(pool):
    if ends(pool.close, CLOSE):
        return "orderly"
    if pool.force and ends(pool.force, FORCE):
        return "forced"
    return "hangs"


def main():
    _, name, fault = sys.argv
    pool = POOLS[name]()
    report_and_wait({"first": batch(pool, 0, fault)})
    # A second time if none came back: a pool may notice only then that it has to recover.
    for _ in range(2):
        outcomes = batch(pool, LATER, fault)
        report_and_wait({"later": outcomes})
        if "right" in outcomes:
            break
    began = time.monotonic()
    closing = close(pool)
    report_and_wait({"closed": [closing, int(time.monotonic() - began)]})
    if closing == "hangs":
        # A regular exit would hang as well.
        os._exit(0)


if __name__ == "__main__":
    main()
