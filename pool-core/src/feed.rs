//! Turns a caller's inputs into a backend's job: draws, encodes and submits them in batches.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_worker::{Attachment, Frames, Task};

use crate::backend::{Failure, Job, JobId, Options, Outcomes, Portion, Sink, Workers};
use crate::error::Error;
use crate::few::Few;
use crate::log::Tail;
use crate::open;
use crate::pool::Engine;
use crate::progress::Reporting;

/// A batch ends at this size, in bytes, so that large inputs don't pile up.
const BATCH_BYTES: usize = 8 << 20;

/// Inputs that are drawn ahead take about this much memory, in bytes, unless workers need more of them.
const AHEAD_BYTES: usize = 64 << 20;

/// A portion ends at this size, in inputs and in bytes: the most that is sent to a worker at once.
const PORTION_MAX: usize = 4096;
const PORTION_BYTES: usize = 48 * 1024;

/// The most references of a portion: a worker that gets part of a portion gets everything that the portion refers to.
const REFERENCES_MAX: usize = 64;

/// Inputs that were drawn are submitted after this time, even if there is room for more.
const PATIENCE: Duration = Duration::from_micros(500);

/// While inputs arrive quickly, the clock is read once for this many inputs, or for this many smaller batches.
const INPUTS_PER_READING: usize = 16;
const BATCHES_PER_READING: usize = 8;

/// # Errors
///
/// [`Error::InvalidSetting`] if the options can't be met. `inline`: by a pool that has no processes.
pub(crate) fn check(options: &Options, inline: bool) -> Result<(), Error> {
    let invalid = |setting, why: &'static str| Err(Error::invalid_setting(setting, why));
    if options.chunksize == Some(0) {
        return invalid("chunksize", "must be at least 1");
    }
    if options.time_limit.is_some_and(|limit| limit.is_zero()) {
        return invalid("time_limit", "must be greater than zero");
    }
    if inline && options.time_limit.is_some() {
        return invalid("time_limit", NEEDS_PROCESS);
    }
    Ok(())
}

pub(crate) const NEEDS_PROCESS: &str =
    "this needs worker processes, but an inline pool runs tasks in the program itself";

pub(crate) const NO_CHANNELS: &str =
    "the backend of this pool does not support channels, so it can't take a `Sender`";

/// # Errors
///
/// [`Error::Encode`] if the inputs refer to a channel, and the backend does not carry channels.
pub(crate) fn check_channels(
    workers: &dyn Workers,
    portions: &Few<Portion>,
    task: &'static str,
) -> Result<(), Error> {
    if workers.carries_channels() {
        return Ok(());
    }
    let mut inputs = portions.iter().map(|portion| &portion.inputs);
    if inputs.any(|inputs| inputs.attachments().any(|attached| attached.has_channel())) {
        return Err(Error::arguments(task, NO_CHANNELS.to_owned()));
    }
    Ok(())
}

/// Feeds one job. If it is dropped before the end of its inputs (because the caller's iterator panicked, or the caller lost
/// interest), inputs that have not begun are taken back.
#[derive(Debug)]
pub(crate) struct Feed {
    workers: Arc<dyn Workers>,
    sink: Arc<dyn Sink>,
    job: Job,
    /// The name of the task.
    name: &'static str,
    /// The bound arguments, with which all inputs begin.
    bound: Option<Arc<Attachment>>,
    hint: usize,
    id: Option<JobId>,
    /// The position of the next input.
    next: usize,
    ended: bool,
    /// The inputs arrive slowly; or that is not known yet.
    slow: bool,
    /// How many batches were drawn.
    draws: usize,
    /// How many bytes were handed over.
    bytes: usize,
    /// Reports the progress of the call.
    reporting: Option<Reporting>,
    tail: Tail,
}

/// Inputs that were drawn together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bound: Option<Arc<Attachment>>,
    portions: Few<Portion>,
    /// The last portion, which may get more inputs, and the position of its first input.
    last: Frames,
    first: usize,
    /// Inputs that can't be encoded.
    failed: Vec<(usize, Failure)>,
    count: usize,
    /// How many bytes the portions take, without the last.
    bytes: usize,
}

impl Batch {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    fn is_full(&self) -> bool {
        self.bytes + self.last.size() >= BATCH_BYTES
    }

    /// Ends the last portion: the next input begins another.
    fn seal(&mut self) {
        if self.last.count() > 0 {
            // The next one will be about as large.
            let next = Frames::with_capacity(self.last.size());
            let inputs = mem::replace(&mut self.last, next);
            self.add(self.first, inputs);
        }
    }

    fn add(&mut self, first: usize, mut inputs: Frames) {
        if let Some(bound) = &self.bound {
            inputs.bind(bound);
        }
        self.bytes += inputs.size();
        self.portions.push(Portion { first, inputs });
    }
}

impl Feed {
    /// # Errors
    ///
    /// As [`check`].
    pub(crate) fn new<T: Task>(
        engine: &Engine,
        sink: Arc<dyn Sink>,
        options: Options,
        bound: Option<Arc<Attachment>>,
        reporting: Option<Reporting>,
    ) -> Result<Feed, Error> {
        check(&options, engine.inline)?;
        let workers = &engine.workers;
        let task = T::number();
        let (sink, log_level, tail) = engine.logs.listen(sink);
        Ok(Feed {
            workers: Arc::clone(workers),
            sink,
            job: Job {
                task,
                single: false,
                options,
                log_level,
            },
            name: T::NAME,
            bound,
            hint: workers.hint(task),
            id: None,
            next: 0,
            ended: false,
            slow: true,
            draws: 0,
            bytes: 0,
            reporting,
            tail,
        })
    }

    /// What the inputs log.
    pub(crate) fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Results are about to be returned: lets what their inputs have printed and logged come before them.
    pub(crate) fn settle(&self, deadline: Option<Instant>) {
        self.workers.settle();
        self.tail.settle(deadline);
    }

    /// How many inputs are worth giving to one worker at once, as of the last [`send`](Feed::send).
    pub(crate) fn hint(&self) -> usize {
        self.hint
    }

    /// How many inputs are worth drawing ahead: `most`, unless these would take too much memory.
    pub(crate) fn ahead(&self, most: usize, least: usize) -> usize {
        let average = self.bytes / self.next.max(1);
        most.min(AHEAD_BYTES / average.max(1)).max(least)
    }

    /// The chunk size that the caller asked for.
    pub(crate) fn explicit_chunk(&self) -> Option<usize> {
        self.job.options.chunksize
    }

    /// An empty batch.
    pub(crate) fn batch(&self) -> Batch {
        Batch {
            bound: self.bound.clone(),
            ..Batch::default()
        }
    }

    /// Encodes the next input into a batch.
    #[inline]
    pub(crate) fn encode(
        &self,
        batch: &mut Batch,
        encode: impl FnOnce(&mut Vec<u8>) -> open::Encoded,
    ) {
        let index = self.next + batch.count;
        batch.count += 1;
        if batch.last.count() == 0 {
            batch.first = index;
        }
        match batch.last.push(encode) {
            Ok(None) => {
                if batch.last.count() >= PORTION_MAX
                    || batch.last.size() >= PORTION_BYTES
                    || batch.last.references() >= REFERENCES_MAX
                {
                    batch.seal();
                }
            }
            Ok(Some(alone)) => {
                batch.seal();
                batch.add(index, alone);
            }
            Err(error) => {
                batch.seal();
                let failure = Failure::EncodeArguments(error.to_string());
                batch.failed.push((index, failure));
            }
        }
    }

    /// Draws and encodes up to `room` inputs, a whole number of chunks. Returns false if there are no more.
    pub(crate) fn draw<X>(
        &mut self,
        room: usize,
        mut next: impl FnMut() -> Option<X>,
        encode: impl Fn(X, &mut Vec<u8>) -> open::Encoded,
    ) -> (Batch, bool) {
        let chunk = self.job.options.chunksize.unwrap_or(1);
        let timed = self.slow
            || room > INPUTS_PER_READING
            || self.draws.is_multiple_of(BATCHES_PER_READING);
        self.draws += 1;
        let began = timed.then(Instant::now);
        let late = || began.is_some_and(|began| began.elapsed() >= PATIENCE);
        let mut batch = self.batch();
        while batch.len() < room {
            // Inputs that were drawn should not wait for a slow iterator, or for large inputs; but an explicit chunk is
            // submitted as a whole.
            let len = batch.len();
            if len > 0
                && len.is_multiple_of(chunk)
                && (batch.is_full()
                    || (self.slow || len.is_multiple_of(INPUTS_PER_READING)) && late())
            {
                break;
            }
            let Some(input) = next() else {
                return (batch, false);
            };
            self.encode(&mut batch, |out| encode(input, out));
        }
        if timed {
            self.slow = late();
        }
        (batch, true)
    }

    /// Whether inputs arrive slowly.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow
    }

    /// Submits a batch. In case of an error, none of it was accepted.
    pub(crate) fn send(&mut self, batch: Batch, more: bool) -> Result<(), Error> {
        let count = batch.len();
        if let Some(reporting) = &mut self.reporting {
            reporting.draw(count, more);
        }
        let sent = self.hand_over(batch, more);
        if let Some(reporting) = &self.reporting {
            match (&sent, self.id) {
                (Ok(()), Some(id)) => reporting.counts().accepted(id),
                _ => reporting.counts().refuse(count),
            }
        }
        sent
    }

    fn hand_over(&mut self, mut batch: Batch, more: bool) -> Result<(), Error> {
        if batch.last.count() > 0 {
            let inputs = mem::take(&mut batch.last);
            batch.add(batch.first, inputs);
        }
        check_channels(&*self.workers, &batch.portions, self.name)?;
        self.bytes = self.bytes.saturating_add(batch.bytes);
        match self.id {
            None => {
                let sink = Arc::clone(&self.sink);
                let id = self.workers.submit(self.job, sink, batch.portions, more)?;
                self.id = Some(id);
            }
            Some(id) => self.workers.push(id, batch.portions, more)?,
        }
        if more {
            self.hint = self.workers.hint(self.job.task);
        }
        self.next += batch.count;
        self.ended = !more;
        for (index, failure) in batch.failed {
            let failed = Outcomes::failed(index, 1, Arc::new(failure));
            Arc::clone(&self.sink).deliver(failed);
        }
        Ok(())
    }

    /// Waits for the last progress report, if there are reports; but not long.
    pub(crate) fn wait_for_report(&self) {
        if let Some(reporting) = &self.reporting {
            reporting.counts().wait_for_report();
        }
    }

    pub(crate) fn id(&self) -> Option<JobId> {
        self.id
    }

    /// Takes back inputs that have not begun: the results are no longer wanted.
    pub(crate) fn abandon(&mut self) {
        if let Some(id) = self.id {
            self.workers.cancel(id, false);
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if !self.ended {
            self.abandon();
        }
    }
}
