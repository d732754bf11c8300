//! [`LogLevel`]: which log records of workers are wanted.

use serde::{Deserialize, Serialize};

/// Which log records of workers are wanted: those of this level, and of the more severe ones.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum LogLevel {
    /// None.
    #[default]
    Off,
    /// Errors.
    Error,
    /// Also warnings.
    Warn,
    /// Also useful information.
    Info,
    /// Also what helps with debugging.
    Debug,
    /// Everything.
    Trace,
}

#[cfg(feature = "tracing")]
impl LogLevel {
    /// The level that has this number, as `level as u32` gives it. A number without a level is treated as the last one.
    pub(crate) fn of(number: u32) -> LogLevel {
        match number {
            0 => LogLevel::Off,
            1 => LogLevel::Error,
            2 => LogLevel::Warn,
            3 => LogLevel::Info,
            4 => LogLevel::Debug,
            _ => LogLevel::Trace,
        }
    }
}

#[cfg(feature = "tracing")]
impl From<tracing_core::LevelFilter> for LogLevel {
    fn from(filter: tracing_core::LevelFilter) -> LogLevel {
        use tracing_core::Level;
        match filter.into_level() {
            None => LogLevel::Off,
            Some(Level::ERROR) => LogLevel::Error,
            Some(Level::WARN) => LogLevel::Warn,
            Some(Level::INFO) => LogLevel::Info,
            Some(Level::DEBUG) => LogLevel::Debug,
            Some(_) => LogLevel::Trace,
        }
    }
}

#[cfg(feature = "tracing")]
impl From<LogLevel> for tracing_core::LevelFilter {
    fn from(level: LogLevel) -> tracing_core::LevelFilter {
        use tracing_core::LevelFilter;
        match level {
            LogLevel::Off => LevelFilter::OFF,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }
}

#[cfg(feature = "tracing")]
impl From<log::LevelFilter> for LogLevel {
    fn from(filter: log::LevelFilter) -> LogLevel {
        LogLevel::of(filter as u32)
    }
}

#[cfg(feature = "tracing")]
impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> log::LevelFilter {
        use log::LevelFilter;
        match level {
            LogLevel::Off => LevelFilter::Off,
            LogLevel::Error => LevelFilter::Error,
            LogLevel::Warn => LevelFilter::Warn,
            LogLevel::Info => LevelFilter::Info,
            LogLevel::Debug => LevelFilter::Debug,
            LogLevel::Trace => LevelFilter::Trace,
        }
    }
}
