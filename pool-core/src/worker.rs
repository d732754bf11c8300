//! For code that runs in a worker: which one is this?

/// Which worker of its pool this process is, from 0; `None` in any other process. A worker that
/// takes the place of one that died takes its index too. (`None` also in the tasks of a pool that is
/// [`inline`](crate::PoolBuilder::inline): it has no workers.)
pub fn index() -> Option<usize> {
    pool_worker::index()
}

/// Whether this process is a worker. The one in which an [`inline`](crate::PoolBuilder::inline) pool runs its tasks is none.
pub fn is_worker() -> bool {
    index().is_some()
}
