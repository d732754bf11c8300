//! Forks while it holds a pool. The child drops its copy, which must do nothing: it must send no signal, and not wait
//! for threads that a fork does not copy. The parent's pool keeps working.

use std::io;

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

fn main() -> Result<(), Error> {
    let pool = Pool::with_processes(2)?;
    // A callback gives the pool one more thread.
    let results = pool.map_async(square, 0..20).callback(|_| ());
    assert_eq!(results.get()?.len(), 20);
    let unfinished = pool.map_async(square, 0..20);

    // SAFETY: no other thread of this program holds a lock that the child takes: the pool's threads are waiting, since
    // the results above have all arrived or are on their way.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", io::Error::last_os_error());
    if child == 0 {
        drop(unfinished);
        drop(pool);
        // SAFETY: ends this process without running the rest of `main`.
        unsafe { libc::_exit(42) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for the status of a child of ours.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child, "{}", io::Error::last_os_error());
    println!(
        "child: {:?}",
        libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
    );
    println!("unfinished: {}", unfinished.get()?.len());
    println!("parent: {}", pool.map(square, 0..20)?.len());
    Ok(())
}
