//! What the pool promises, one module a promise, through the public face only.
//!
//! Every test starts real worker processes. None waits for time to pass: where a test must know that
//! a task has begun, the task says so through a [`Gate`](support::Gate), and it goes on when the test
//! lets it. A test that hangs is ended by its [`watchdog`](support::watchdog).

mod channel;
mod contain;
mod cpython;
mod crash;
mod data;
mod events;
mod far;
mod handle;
mod hooks;
mod inline;
mod lazy;
mod leaks;
mod lifecycle;
mod log;
mod nats;
mod order;
mod output;
mod paths;
mod preload;
mod progress;
mod sandbox;
mod shares;
mod stats;
mod support;
mod task_error;
mod timeline;
mod types;
