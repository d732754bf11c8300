//! What workers report to their pool: the kinds of [`Reports`](crate::Reports).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::fault::Fault;
use crate::ring::Replies;

/// The worker has logged something: see `record`. Only with the feature `tracing`.
pub const LOG: u8 = 1;

/// An input was begun: see [`read_began`].
pub const BEGAN: u8 = 2;

/// Inputs were run: see [`read_ran`].
pub const RAN: u8 = 3;

/// What a worker reports about the inputs that it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tells {
    /// Nothing.
    #[default]
    Nothing,
    /// How long they ran; for short ones, several together.
    Spans,
    /// When each begins, and when it ends.
    Each,
}

/// How finished inputs ended, from good to bad.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// With a result.
    #[default]
    Done,
    /// Arguments or result could not be encoded or decoded.
    Unreadable,
    /// The task panicked.
    Panicked,
}

impl Ending {
    /// The ending of an input with this outcome.
    pub(crate) fn of<T>(outcome: &Result<T, Fault>) -> Ending {
        match outcome {
            Ok(_) => Ending::Done,
            Err(Fault::Panicked(_)) => Ending::Panicked,
            Err(_) => Ending::Unreadable,
        }
    }
}

/// Consecutive inputs of one portion that were run. The worker has written these values, and they need not be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ran {
    /// The number of the task.
    pub task: u32,
    /// The number of an input that has no reply yet, counted from the worker's start, wrapping around.
    pub number: u32,
    /// By how many the first input comes before that one.
    pub before: u32,
    /// How many inputs these are.
    pub count: u32,
    /// How many of them failed.
    pub failed: u32,
    /// The worst ending among them.
    pub ending: Ending,
    /// When the first began, by [`now`](crate::now()).
    pub began: Duration,
    /// When the last ended, by the same clock.
    pub ended: Duration,
    /// How long they ran, all together.
    pub busy: Duration,
}

/// Reads a report that an input was begun: its number, counted from the worker's start; and when, by [`now`](crate::now()).
/// `None` if this is not such a report.
pub fn read_began(bytes: &[u8]) -> Option<(u32, Duration)> {
    let (number, rest) = bytes.split_first_chunk()?;
    let at = rest.first_chunk()?;
    let at = Duration::from_nanos(u64::from_le_bytes(*at));
    Some((u32::from_le_bytes(*number), at))
}

const WORDS: usize = 6 * size_of::<u32>();

/// Reads a report that inputs were run. `None` if this is not such a report.
pub fn read_ran(bytes: &[u8]) -> Option<Ran> {
    let (words, times) = bytes.split_at_checked(WORDS)?;
    let mut words = words
        .as_chunks()
        .0
        .iter()
        .map(|word| u32::from_le_bytes(*word));
    let mut times = times
        .as_chunks()
        .0
        .iter()
        .map(|time| u64::from_le_bytes(*time));
    let mut word = || words.next();
    let mut time = || times.next().map(Duration::from_nanos);
    Some(Ran {
        task: word()?,
        number: word()?,
        before: word()?,
        count: word()?,
        failed: word()?,
        ending: match word()? {
            0 => Ending::Done,
            1 => Ending::Unreadable,
            _ => Ending::Panicked,
        },
        began: time()?,
        ended: time()?,
        busy: time()?,
    })
}

/// Short inputs are reported together until they have taken this long, in nanoseconds.
const SPAN: u64 = 1_000_000;

/// An input that takes at least this long, in nanoseconds, is reported alone.
const ALONE: u64 = 20_000;

/// The clock is read once for this many inputs, unless each takes at least `LONG`, in nanoseconds.
const INPUTS_PER_READING: u32 = 16;
const LONG: u64 = 2_000;

/// Reports inputs, in the worker.
#[derive(Debug)]
pub(crate) struct Teller {
    tells: Tells,
    task: u32,
    /// When the clock was read last, and how many inputs were run since.
    at: u64,
    unread: u32,
    /// How long inputs have taken lately.
    each: u64,
    /// Inputs that were not reported yet, up to the last reading of the clock.
    span: Span,
    /// How many of the inputs since then failed, and their worst ending.
    failed: u32,
    ending: Ending,
}

#[derive(Debug, Clone, Copy, Default)]
struct Span {
    count: u32,
    failed: u32,
    ending: Ending,
    began: u64,
    busy: u64,
}

impl Teller {
    /// `None` if nothing is to be reported.
    pub(crate) fn new(tells: Tells) -> Option<Teller> {
        (tells != Tells::Nothing).then(|| Teller {
            tells,
            task: 0,
            at: 0,
            unread: 0,
            each: LONG,
            span: Span::default(),
            failed: 0,
            ending: Ending::Done,
        })
    }

    /// A portion of this task is begun.
    pub(crate) fn take_up(&mut self, task: u32) {
        if self.task != task {
            self.task = task;
            self.each = LONG;
        }
        self.at = clock::now_ns();
        self.unread = 0;
    }

    /// The rest of the portion was taken back. Reports the inputs that were run, which have their replies.
    pub(crate) fn cut(&mut self, replies: &Replies) {
        if self.unread > 0 || self.span.count > 0 {
            self.read(true, replies);
        }
    }

    /// The next input was begun.
    #[inline]
    pub(crate) fn begin(&mut self, replies: &Replies) {
        if self.tells == Tells::Each {
            self.at = clock::now_ns();
            let mut report = [0; 12];
            report[..4].copy_from_slice(&replies.begun().to_le_bytes());
            report[4..].copy_from_slice(&self.at.to_le_bytes());
            replies.report(BEGAN, &report);
        }
    }

    /// The input was run, and has no reply yet. `is_last`: whether it is the last of its portion.
    #[inline]
    pub(crate) fn end(&mut self, ending: Ending, is_last: bool, replies: &Replies) {
        self.unread += 1;
        let is_failed = ending != Ending::Done;
        self.failed += u32::from(is_failed);
        self.ending = self.ending.max(ending);
        let is_due = is_last
            || is_failed
            || self.tells == Tells::Each
            || self.each >= LONG
            || self.unread >= INPUTS_PER_READING;
        if is_due {
            self.read(is_last || is_failed || self.tells == Tells::Each, replies);
        }
    }

    fn read(&mut self, is_due: bool, replies: &Replies) {
        let (now, since, count) = (clock::now_ns(), self.at, self.unread);
        let took = now.saturating_sub(since);
        self.at = now;
        self.unread = 0;
        self.each = took / u64::from(count.max(1));
        let is_alone = count == 1 && took >= ALONE;
        if is_alone && self.span.count > 0 {
            self.tell(since, 1, replies);
        }
        if count > 0 && self.span.count == 0 {
            self.span.began = since;
        }
        self.span.count += count;
        if count > 0 {
            self.span.busy += took;
        }
        self.span.failed += std::mem::take(&mut self.failed);
        self.span.ending = self.span.ending.max(std::mem::take(&mut self.ending));
        if is_due || is_alone || now.saturating_sub(self.span.began) >= SPAN {
            self.tell(now, 0, replies);
        }
    }

    /// Reports the inputs that ended by the time `ended`. `later`: how many inputs were run after them.
    fn tell(&mut self, ended: u64, later: u32, replies: &Replies) {
        let Span {
            count,
            failed,
            ending,
            began,
            busy,
        } = std::mem::take(&mut self.span);
        let before = (count + later).saturating_sub(1);
        let words = [
            self.task,
            replies.begun(),
            before,
            count,
            failed,
            ending as u32,
        ];
        let mut report = [0; WORDS + 3 * size_of::<u64>()];
        let (front, back) = report.split_at_mut(WORDS);
        for (to, word) in front.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        for (to, time) in back.as_chunks_mut().0.iter_mut().zip([began, ended, busy]) {
            *to = time.to_le_bytes();
        }
        replies.report(RAN, &report);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_a_report_are_rejected() {
        assert_eq!(read_began(&[0; 11]), None);
        assert_eq!(read_ran(&[0; 47]), None);
        let words: Vec<u8> = (0..24).map(|n| u8::from(n % 4 == 0) * 9).collect();
        let ran = read_ran(&[&words[..], &[1; 24]].concat()).expect("it is long enough");
        assert_eq!((ran.task, ran.count, ran.ending), (9, 9, Ending::Panicked));
    }
}
