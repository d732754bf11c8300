//! For code that may run in a worker: tells which process this is.
//!
//! Workers are this same program, but they never run `main`. A task, or a library that it calls, can find out here where it
//! runs:
//!
//! ```
//! use pool_core::{Error, Pool, pool_task, worker};
//!
//! /// A name for files that only this process writes to.
//! fn log_name() -> String {
//!     match worker::index() {
//!         Some(index) => format!("worker-{index}.log"),
//!         None => "main.log".to_owned(),
//!     }
//! }
//!
//! #[pool_task]
//! fn where_to() -> String {
//!     assert!(worker::is_worker());
//!     log_name()
//! }
//!
//! # fn main() -> Result<(), Error> {
//! let pool = Pool::with_processes(1)?;
//! assert_eq!(pool.apply(where_to, ())?, "worker-0.log");
//! assert_eq!(log_name(), "main.log");
//! # Ok(())
//! # }
//! ```

/// The position of this worker in its pool, from 0; `None` in any other process, and in the tasks of an
/// [`inline`](crate::PoolBuilder::inline) pool, which has no workers. A worker that takes the place of one that died has the
/// same index.
pub fn index() -> Option<usize> {
    pool_worker::index()
}

/// Whether this process is a worker. A process in which an [`inline`](crate::PoolBuilder::inline) pool runs its tasks is not.
pub fn is_worker() -> bool {
    index().is_some()
}
