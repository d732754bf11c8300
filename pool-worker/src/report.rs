//! What workers report to their pool: the kinds of [`Reports`](crate::Reports).

/// A record of what the worker has logged: see `record`. Only with the feature `tracing`.
pub const LOG: u8 = 1;
