//! [`Retries`]: how often an input is run again, and after which failures.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often an input is run again after an attempt that failed, and which failures count.
///
/// A number is enough in most cases: `.retries(2)` means `.retries(Retries::new(2))`. An input is run again if its worker dies
/// under it; after a panic or a passed time limit only if you ask for that.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use pool_core::{Error, Pool, Retries, pool_task};
///
/// #[pool_task]
/// fn fetch(page: u32) -> u32 {
///     page * 2
/// }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::with_processes(2)?;
/// let often = Retries::new(3).on_panic().backoff(Duration::from_millis(100));
/// assert_eq!(pool.task(fetch).retries(often).map(0..3)?, [0, 2, 4]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    most: u32,
    on_panic: bool,
    on_time_limit: bool,
    backoff: Duration,
}

impl Retries {
    /// Allows this many more attempts after the first. The default of a pool is 0: nothing runs twice.
    pub const fn new(retries: u32) -> Retries {
        Retries {
            most: retries,
            on_panic: false,
            on_time_limit: false,
            backoff: Duration::ZERO,
        }
    }

    /// Also runs an input again after it panics.
    #[must_use]
    pub const fn on_panic(self) -> Retries {
        Retries {
            on_panic: true,
            ..self
        }
    }

    /// Also runs an input again after it exceeds its time limit.
    #[must_use]
    pub const fn on_time_limit(self) -> Retries {
        Retries {
            on_time_limit: true,
            ..self
        }
    }

    /// The pause between the first attempt and the second; each later pause is twice as long as the one before. Other inputs run
    /// meanwhile.
    ///
    /// Default: none.
    #[must_use]
    pub const fn backoff(self, pause: Duration) -> Retries {
        Retries {
            backoff: pause,
            ..self
        }
    }

    /// Whether another attempt follows after this many.
    pub fn go_on_after(&self, attempts: u32) -> bool {
        attempts <= self.most
    }

    /// Whether another attempt follows after this many if the last one panicked.
    pub(crate) fn go_on_after_panic(&self, attempts: u32) -> bool {
        self.on_panic && self.go_on_after(attempts)
    }

    pub(crate) fn has_on_panic(&self) -> bool {
        self.on_panic
    }

    pub(crate) fn has_on_time_limit(&self) -> bool {
        self.on_time_limit
    }

    /// How long to wait after this many attempts.
    pub(crate) fn pause_after(&self, attempts: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1));
        self.backoff.saturating_mul(doubled)
    }
}

impl From<u32> for Retries {
    fn from(retries: u32) -> Retries {
        Retries::new(retries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double() {
        let retries = Retries::new(5).backoff(Duration::from_millis(10));
        let pauses = [1, 2, 3, 4].map(|attempts| retries.pause_after(attempts).as_millis());
        assert_eq!(pauses, [10, 20, 40, 80]);
        assert_eq!(Retries::new(1).pause_after(40), Duration::ZERO);
        // It does not overflow.
        assert!(retries.pause_after(u32::MAX) > Duration::from_secs(1));
    }
}
