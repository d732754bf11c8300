//! From a caller's inputs to a backend's job: drawn, encoded, and handed over in batches.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_worker::{Attachment, Frames, Task};

use crate::backend::{Failure, Job, JobId, Options, Outcomes, Portion, Sink, Workers};
use crate::error::Error;
use crate::few::Few;
use crate::open;
use crate::pool::Engine;
use crate::progress::Reporting;

/// A batch is cut off at this size, in bytes, so that large inputs do not pile up.
const BATCH_BYTES: usize = 8 << 20;

/// Inputs that are drawn ahead take about so much memory, in bytes, unless there are fewer than workers need.
const AHEAD_BYTES: usize = 64 << 20;

/// A portion is cut off at this size, in inputs and in bytes: that much goes to a worker at once, at the
/// most.
const PORTION_MAX: usize = 4096;
const PORTION_BYTES: usize = 48 * 1024;

/// Whoever gets a part of a portion gets all that it refers to.
const REFERENCES_MAX: usize = 64;

/// What was drawn is handed over after this time, though there is room for more.
const PATIENCE: Duration = Duration::from_micros(500);

/// The clock is read once for so many inputs, or for so many batches that are smaller, while the inputs
/// come quickly.
const INPUTS_PER_READING: usize = 16;
const BATCHES_PER_READING: usize = 8;

/// # Errors
///
/// [`Error::InvalidSetting`] if the options can't be met; `inline`: by a pool that has no processes.
pub(crate) fn check(options: &Options, inline: bool) -> Result<(), Error> {
    let invalid = |setting, why: &'static str| Err(Error::invalid_setting(setting, why));
    if options.chunksize == Some(0) {
        return invalid("chunksize", "a chunk holds at least one input");
    }
    if options.time_limit.is_some_and(|limit| limit.is_zero()) {
        return invalid("time_limit", "no task ends in no time");
    }
    if inline && options.time_limit.is_some() {
        return invalid("time_limit", NEEDS_PROCESS);
    }
    Ok(())
}

pub(crate) const NEEDS_PROCESS: &str = "only a worker process can be stopped, and the tasks of an inline pool run in the program itself";

pub(crate) const NO_CHANNELS: &str =
    "the backend of this pool does not carry what a `Sender` sends";

/// # Errors
///
/// [`Error::Encode`] if a channel is among the arguments, and what is sent there would not arrive.
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

/// Feeds one job. Dropped before the end of its inputs (because the caller's iterator panicked, or
/// the caller lost interest), it takes back what has not begun.
#[derive(Debug)]
pub(crate) struct Feed {
    workers: Arc<dyn Workers>,
    sink: Arc<dyn Sink>,
    job: Job,
    /// That of the task.
    name: &'static str,
    /// What all inputs begin with.
    bound: Option<Arc<Attachment>>,
    hint: usize,
    id: Option<JobId>,
    /// The position of the next input.
    next: usize,
    ended: bool,
    /// The inputs are slow in coming; or it is not known yet whether they are.
    slow: bool,
    /// How many batches were drawn.
    draws: usize,
    /// How many bytes were handed over.
    bytes: usize,
    /// Who is told how far it is.
    reporting: Option<Reporting>,
}

/// Inputs that were drawn together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bound: Option<Arc<Attachment>>,
    portions: Few<Portion>,
    /// The last portion, which may get more, and the position of its first input.
    last: Frames,
    first: usize,
    /// Those that can't be encoded.
    failed: Vec<(usize, Failure)>,
    count: usize,
    /// How many bytes the portions take, but for the last.
    bytes: usize,
}

impl Batch {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    fn is_full(&self) -> bool {
        self.bytes + self.last.size() >= BATCH_BYTES
    }

    /// What comes next does not join what came last.
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
        let (sink, log_level) = engine.logs.listen(sink);
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
        })
    }

    /// How many inputs are worth giving to one worker at once, as was known at the last
    /// [`send`](Feed::send).
    pub(crate) fn hint(&self) -> usize {
        self.hint
    }

    /// How many inputs are worth drawing ahead: so many, but not so many bytes that they fill the memory.
    pub(crate) fn ahead(&self, most: usize, least: usize) -> usize {
        let average = self.bytes / self.next.max(1);
        most.min(AHEAD_BYTES / average.max(1)).max(least)
    }

    /// The chunk size that the caller asked for.
    pub(crate) fn explicit_chunk(&self) -> Option<usize> {
        self.job.options.chunksize
    }

    /// Nothing yet.
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

    /// Draws and encodes up to `room` inputs, a whole number of chunks. False: there are no more.
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
            // What was drawn should not wait for an iterator that is slow, or for large inputs; but
            // an explicit chunk is handed over whole.
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

    /// Whether inputs are slow in coming.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow
    }

    /// Hands a batch over. On an error, nothing of it was accepted.
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

    /// Waits for the last report on what was fed, if there are any; not for long.
    pub(crate) fn wait_for_report(&self) {
        if let Some(reporting) = &self.reporting {
            reporting.counts().wait_for_report();
        }
    }

    pub(crate) fn id(&self) -> Option<JobId> {
        self.id
    }

    /// Takes back what has not begun: nobody wants the results.
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
