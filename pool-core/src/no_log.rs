//! In place of `log`, where this crate has not the feature `tracing`: nobody listens.

use std::sync::Arc;
use std::time::Instant;

use crate::backend::{LogLevel, Observer, Sink};

/// Nothing.
#[derive(Debug)]
pub(crate) struct Logs;

impl Logs {
    pub(crate) fn new() -> Logs {
        Logs
    }

    pub(crate) fn level(&self) -> LogLevel {
        LogLevel::Off
    }

    pub(crate) fn observer(&self, next: Option<Arc<dyn Observer>>) -> Option<Arc<dyn Observer>> {
        next
    }

    #[inline]
    pub(crate) fn listen(&self, sink: Arc<dyn Sink>) -> (Arc<dyn Sink>, LogLevel) {
        (sink, LogLevel::Off)
    }

    pub(crate) fn wait(&self, _: Option<Instant>) -> bool {
        true
    }

    pub(crate) fn end(&self) {}
}
