//! How bytes travel between the parent and one worker.
//!
//! A link carries frames both ways and one piece of shared memory, the [`ledger`](crate::ledger).
//! What it promises, whatever it is made of:
//!
//! - The parent's `send` does not block: what does not fit yet waits in the parent. (That holds as long
//!   as the worker tells the truth about what it has taken.) If the system refuses a frame, `send` says
//!   so, and the worker is killed, for it will never get what it must have.
//! - The worker's `send` blocks until the parent has room; the parent always reads.
//! - Frames arrive in order, whole, or not at all.
//! - Links of different workers share nothing: no lock, no queue, no memory.
//! - After the worker's death the parent's receiving end yields everything that was sent before
//!   it, then the end mark, even if some grandchild still holds the worker's descriptors.
//!
//! There is one link today: byte channels of ipc-channel, [`channel`]. Everything above this
//! module knows frames only.

pub(crate) mod channel;
