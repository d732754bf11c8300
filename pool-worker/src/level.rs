//! [`LogLevel`]: how much of what a worker logs somebody wants to have.

use serde::{Deserialize, Serialize};

/// Which of the log records of workers somebody wants to have: those of this level, and of those before it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum LogLevel {
    /// None.
    #[default]
    Off,
    /// Errors.
    Error,
    /// Warnings, too.
    Warn,
    /// What is of use to know, too.
    Info,
    /// What helps to find mistakes, too.
    Debug,
    /// Everything.
    Trace,
}

#[cfg(feature = "tracing")]
impl LogLevel {
    /// The level that has this number, as `level as u32` gives it. A number that is none is taken for the last.
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
