//! How bytes travel between the parent and one worker.
//!
//! A link carries frames both ways and one piece of shared memory, the [`ledger`](crate::ledger).
//! What it promises, whatever it is made of:
//!
//! - The parent's `send` never blocks and never fails: what does not fit yet waits in the parent,
//!   and what was sent to a dead worker is forgotten, because death is reported elsewhere.
//! - The worker's `send` blocks until the parent has room; the parent always reads.
//! - Frames arrive in order, whole, or not at all.
//! - Links of different workers share nothing: no lock, no queue, no memory.
//! - After the worker's death the parent's receiving end yields everything that was sent before
//!   it, then the end mark, even if some grandchild still holds the worker's descriptors.
//!
//! There is one link today: byte channels of ipc-channel, [`channel`]. Everything above this
//! module knows frames only.

pub(crate) mod channel;
