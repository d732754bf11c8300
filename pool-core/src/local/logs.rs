//! Passes what workers log from their rings to the listeners.

use pool_worker::record::Glimpse;
use pool_worker::{Reports, task_name};

use super::state::State;
use crate::backend::{LogRecords, LogSource, News};

impl State {
    /// Passes on what a worker has logged, to the jobs of the inputs that ran. Must be called before the replies behind these
    /// records count as answers.
    pub(super) fn take_logs(&mut self, slot: usize, reports: &Reports) {
        let mut begun = None;
        let mut records = Vec::new();
        for record in reports.iter() {
            let Some(glimpse) = Glimpse::of(record) else {
                continue;
            };
            if begun != Some(glimpse.begun) {
                self.hand_on(slot, begun, &mut records);
                begun = Some(glimpse.begun);
            }
            records.extend((record.len() as u32).to_le_bytes());
            records.extend_from_slice(record);
        }
        self.hand_on(slot, begun, &mut records);
    }

    /// Passes on what was logged while one input ran, given the ring's count of inputs begun.
    fn hand_on(&mut self, slot: usize, begun: Option<u32>, records: &mut Vec<u8>) {
        let Some(source) = self.log_source(slot).filter(|_| !records.is_empty()) else {
            return;
        };
        self.has_logged = true;
        let located = begun.and_then(|begun| self.scheduler.locate(slot, begun));
        let task = located.map(|located| located.task);
        let records = LogRecords {
            source,
            task: task.filter(|task| task_name(*task).is_some()),
            index: located.and_then(|located| located.index),
            ended: false,
            records: std::mem::take(records),
            dropped: 0,
        };
        match located.and_then(|located| self.sink_of(located.job)) {
            Some(sink) => sink.log(records),
            None => self.tell_at_once(News::Log(records)),
        }
    }

    /// The worker of this slot is dead, and what it has logged was passed on.
    pub(super) fn end_logs(&mut self, slot: usize) {
        let logs = |source: &LogSource| {
            let worker = self.workers[slot].as_ref();
            worker.is_some_and(|worker| worker.logs() && worker.serial() == source.serial)
        };
        if let Some(source) = self.log_source(slot).filter(logs) {
            self.tell_at_once(News::Log(LogRecords {
                source,
                task: None,
                index: None,
                ended: true,
                records: Vec::new(),
                dropped: 0,
            }));
        }
    }

    fn tell_at_once(&self, news: News) {
        if let Some(observer) = &self.observer {
            observer.observe(vec![news]);
        }
    }

    fn log_source(&self, slot: usize) -> Option<LogSource> {
        let worker = self.workers[slot].as_ref()?;
        Some(LogSource {
            worker: self.scheduler.worker_of(slot),
            pid: worker.pid(),
            host: None,
            serial: worker.serial(),
        })
    }
}
