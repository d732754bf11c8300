//! What a worker writes to standard output and standard error, told apart by inputs: both ends.
//!
//! Both are pipes to the parent then. Before each input the worker writes a *mark* into both: a token that only parent and worker
//! know, and the number of the input. A mark is shorter than what the system writes to a pipe in one piece, so it is never mixed with
//! other text. What stands between two marks belongs to the input of the first.
//!
//! The parent reads without waiting. It keeps the last [`KEPT`] bytes of each input, until that input's outcome is known.
//! A worker that is under the control of its input may forge marks: then its own inputs get wrong texts, and nobody else's.

mod splitter;

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

pub(crate) use self::splitter::Token;
use self::splitter::{Part, Splitter, mark};
use crate::greeting::Own;
use crate::scarce::{fill_randomly, no};

/// How much of the output of an input is kept, in bytes: the end of it.
pub const KEPT: usize = 64 << 10;

/// A line that is longer than this is told in parts, in bytes.
const LINE_MAX: usize = KEPT;

/// So much is read at one time, in bytes, and so often, unless the worker is dead.
const READ: usize = 32 << 10;
const READS_MAX: usize = 8;
const READS_MAX_DEAD: usize = 1024;

/// Of more inputs than this with text, or of more text, the oldest is forgotten.
const INPUTS_MAX: usize = 1 << 14;
const TEXT_MAX: usize = 16 << 20;

/// Where a worker wrote something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Descriptor 1.
    Out,
    /// Descriptor 2.
    Err,
}

/// A line that a worker wrote.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// The input that ran, as the number of those begun; `None`: before the first, or after the last.
    pub input: Option<u32>,
    /// Where.
    pub side: Side,
    /// The line, without its end.
    pub text: Vec<u8>,
}

// ---- the worker's side ----------------------------------------------------------------------------

/// Writes the marks.
pub(crate) struct Marks {
    token: Token,
    /// The pipes, under numbers of their own: a task may put something else in the places 1 and 2.
    pipes: [Own; 2],
    /// What is written belongs to an input.
    within: Cell<bool>,
}

impl Marks {
    /// Makes these pipes standard output and standard error.
    pub(crate) fn begin(token: Token, out: OwnedFd, err: OwnedFd) -> io::Result<Marks> {
        let unmade = |error: Errno| no("place for its output")(error.into());
        rustix::stdio::dup2_stdout(&out).map_err(unmade)?;
        rustix::stdio::dup2_stderr(&err).map_err(unmade)?;
        unbuffer();
        Ok(Marks {
            token,
            pipes: [Own::new(out), Own::new(err)],
            within: Cell::new(false),
        })
    }

    /// What is written from now on belongs to no input.
    pub(crate) fn end(&self) {
        if self.within.replace(false) {
            self.mark(0);
        }
    }

    /// What is written from now on belongs to this input.
    pub(crate) fn begin_input(&self, input: u32) {
        self.within.set(true);
        self.mark(input);
    }

    fn mark(&self, input: u32) {
        let mark = mark(&self.token, input);
        for pipe in &self.pipes {
            // If a task has closed it, nobody writes there any more.
            if let Some(pipe) = pipe.get() {
                while rustix::io::write(pipe, &mark) == Err(Errno::INTR) {}
            }
        }
    }
}

/// C's own buffer would be lost if the process crashed.
fn unbuffer() {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
    }
    // SAFETY: the C library's, and there is one thread.
    let file = unsafe { stdout };
    // SAFETY: as above; a stream without a buffer needs none.
    unsafe { libc::setvbuf(file, std::ptr::null_mut(), libc::_IONBF, 0) };
}

// ---- the parent's side ----------------------------------------------------------------------------

/// What text is not, unless somebody has seen it.
fn new_token() -> io::Result<Token> {
    let mut token = Token::default();
    // It begins with what is rare in text, so that it is soon told from that.
    fill_randomly(&mut token[1..])?;
    Ok(token)
}

impl Ends {
    pub(crate) fn to_stdio(&self) -> io::Result<(Stdio, Stdio)> {
        let unmade = no("descriptor for the output of a worker");
        let copy = |end: &OwnedFd| end.try_clone().map(Stdio::from).map_err(&unmade);
        Ok((copy(&self.out)?, copy(&self.err)?))
    }
}

/// The ends that workers write to.
#[derive(Debug)]
pub struct Ends {
    pub(crate) token: Token,
    pub(crate) out: OwnedFd,
    pub(crate) err: OwnedFd,
}

/// What a worker has written, as far as it was read.
#[derive(Debug)]
pub struct Capture {
    streams: [Stream; 2],
    /// What inputs have written, by their numbers, which don't wrap around here.
    kept: BTreeMap<i64, Tail>,
    /// How many bytes that is.
    size: usize,
    /// What inputs up to this number have written is needed no more.
    forgotten: i64,
    /// What was written when no input had begun.
    early: Tail,
    /// Lines, if they are wanted.
    lines: Option<Vec<Line>>,
}

/// The end of a text.
#[derive(Debug, Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    /// Appends; gives by how much it has grown.
    fn push(&mut self, text: &[u8]) -> usize {
        let before = self.0.len();
        let text = &text[text.len().saturating_sub(KEPT)..];
        let too_much = (before + text.len()).saturating_sub(KEPT);
        self.0.drain(..too_much);
        self.0.extend(text);
        self.0.len().saturating_sub(before)
    }

    fn text(mut self) -> String {
        let bytes = self.0.make_contiguous();
        // It may begin in the middle of a character.
        let cut = bytes
            .iter()
            .take(3)
            .take_while(|byte| **byte & 0xC0 == 0x80);
        let cut = if bytes.len() == KEPT { cut.count() } else { 0 };
        String::from_utf8_lossy(&bytes[cut..]).into_owned()
    }
}

/// One of the two.
#[derive(Debug)]
struct Stream {
    side: Side,
    /// None: everybody who could write has closed it.
    pipe: Option<OwnedFd>,
    splitter: Splitter,
    input: u32,
    /// The beginning of a line.
    line: Vec<u8>,
}

impl Capture {
    /// With what the worker is to get. `lines`: whether they are wanted.
    pub(crate) fn create(lines: bool) -> io::Result<(Capture, Ends)> {
        let token = new_token()?;
        let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
            fcntl_setfl(&ours, OFlags::NONBLOCK)?;
            Ok((ours, theirs))
        };
        let unmade = no("pipe for the output of a worker");
        let ((our_out, out), (our_err, err)) = (pipe().map_err(&unmade)?, pipe().map_err(&unmade)?);
        let capture = Capture::over(token, lines, [Some(our_out), Some(our_err)]);
        Ok((capture, Ends { token, out, err }))
    }

    /// For the output of all workers of a pool, which nothing tells apart, line by line. They are
    /// [started](crate::Output::Common) with the ends.
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left.
    pub fn of_all() -> io::Result<(Capture, Ends)> {
        Capture::create(true)
    }

    /// Whether somebody may write yet.
    pub fn is_open(&self) -> bool {
        self.streams.iter().any(|stream| stream.pipe.is_some())
    }

    fn over(token: Token, lines: bool, [out, err]: [Option<OwnedFd>; 2]) -> Capture {
        let stream = |side, pipe| Stream {
            side,
            pipe,
            splitter: Splitter::new(token),
            input: 0,
            line: Vec::new(),
        };
        Capture {
            streams: [stream(Side::Out, out), stream(Side::Err, err)],
            kept: BTreeMap::new(),
            size: 0,
            forgotten: 0,
            early: Tail::default(),
            lines: lines.then(Vec::new),
        }
    }

    /// The descriptors that are readable when there is something to [read](Capture::read).
    pub fn pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let streams = self.streams.iter();
        streams.filter_map(|stream| Some(stream.pipe.as_ref()?.as_fd()))
    }

    /// Reads what there is, but not for ever. Gives how many bytes that was. Does not wait.
    pub fn read(&mut self, is_dead: bool) -> usize {
        let mut total = 0;
        let most = if is_dead { READS_MAX_DEAD } else { READS_MAX };
        for _ in 0..most {
            let before = total;
            for stream in 0..self.streams.len() {
                total += self.read_from(stream);
            }
            if total == before {
                break;
            }
        }
        if is_dead {
            self.end_lines();
        }
        total
    }

    fn read_from(&mut self, stream: usize) -> usize {
        let mut buffer = [0; READ];
        let Some(pipe) = &self.streams[stream].pipe else {
            return 0;
        };
        match rustix::io::read(pipe, &mut buffer) {
            Ok(0) => {
                self.streams[stream].pipe = None;
                self.release(stream);
                0
            }
            Ok(len) => {
                self.take(stream, &buffer[..len]);
                len
            }
            Err(Errno::INTR) => self.read_from(stream),
            Err(_) => {
                self.release(stream);
                0
            }
        }
    }

    /// Nothing follows for now: what looks like the beginning of a mark is none.
    fn release(&mut self, stream: usize) {
        let held = self.streams[stream].splitter.release();
        self.take_text(stream, &held);
    }

    fn take(&mut self, stream: usize, bytes: &[u8]) {
        let mut splitter = std::mem::take(&mut self.streams[stream].splitter);
        splitter.feed(bytes, |part| match part {
            Part::Text(text) => self.take_text(stream, text),
            Part::Mark(input) => {
                self.end_line(stream);
                self.streams[stream].input = input;
            }
        });
        self.streams[stream].splitter = splitter;
    }

    fn take_text(&mut self, stream: usize, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        let input = self.streams[stream].input;
        if input == 0 {
            self.early.push(text);
        } else {
            self.keep(input, text);
        }
        if self.lines.is_some() {
            self.take_lines(stream, text);
        }
    }

    /// The number of an input as those before and after it are counted, however often that wraps around.
    fn widen(&self, input: u32) -> i64 {
        let ahead = input.wrapping_sub(self.forgotten as u32) as i32;
        self.forgotten + i64::from(ahead)
    }

    fn keep(&mut self, input: u32, text: &[u8]) {
        let input = self.widen(input);
        if input <= self.forgotten {
            return;
        }
        self.size += self.kept.entry(input).or_default().push(text);
        while self.kept.len() > INPUTS_MAX || self.size > TEXT_MAX {
            let oldest = self.kept.pop_first();
            self.size -= oldest.map_or(0, |(_, tail)| tail.0.len());
        }
    }

    /// What this input has written.
    pub fn take_text_of(&mut self, input: u32) -> String {
        let tail = self.kept.remove(&self.widen(input)).unwrap_or_default();
        self.size -= tail.0.len();
        tail.text()
    }

    /// What was written before the first input, as far as it was not taken.
    pub fn take_early_text(&mut self) -> String {
        std::mem::take(&mut self.early).text()
    }

    /// What inputs up to this number have written is needed no more.
    pub fn forget_until(&mut self, input: u32) {
        self.forgotten = self.forgotten.max(self.widen(input));
        while let Some(oldest) = self.kept.first_entry()
            && *oldest.key() <= self.forgotten
        {
            self.size -= oldest.remove().0.len();
        }
    }

    /// The lines that were read since the last time.
    pub fn take_lines_read(&mut self) -> Vec<Line> {
        self.lines.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn take_lines(&mut self, stream: usize, text: &[u8]) {
        let mut rest = text;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, behind) = rest.split_at(end);
            self.streams[stream].line.extend_from_slice(line);
            rest = &behind[1..];
            self.tell_line(stream);
        }
        self.streams[stream].line.extend_from_slice(rest);
        while self.streams[stream].line.len() > LINE_MAX {
            let line = &mut self.streams[stream].line;
            // Not in the middle of a character.
            let is_within = |at: &usize| line[*at] & 0xC0 == 0x80;
            let into = (LINE_MAX - 3..=LINE_MAX)
                .rev()
                .take_while(is_within)
                .count()
                % 4;
            let rest = line.split_off(LINE_MAX - into);
            self.tell_line(stream);
            self.streams[stream].line = rest;
        }
    }

    /// What is there of a line is one.
    fn end_line(&mut self, stream: usize) {
        if !self.streams[stream].line.is_empty() {
            self.tell_line(stream);
        }
    }

    fn end_lines(&mut self) {
        for stream in 0..self.streams.len() {
            self.end_line(stream);
        }
    }

    fn tell_line(&mut self, stream: usize) {
        let stream = &mut self.streams[stream];
        let mut text = std::mem::take(&mut stream.line);
        text.pop_if(|last| *last == b'\r');
        if let Some(lines) = &mut self.lines {
            lines.push(Line {
                input: (stream.input != 0).then_some(stream.input),
                side: stream.side,
                text,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKEN: Token = *b"a token of a box";

    fn capture() -> Capture {
        Capture::over(TOKEN, true, [None, None])
    }

    fn lines(capture: &mut Capture) -> Vec<(Option<u32>, Side, String)> {
        let lines = capture.take_lines_read().into_iter();
        let text = |line: Line| String::from_utf8(line.text).expect("text");
        lines
            .map(|line| (line.input, line.side, text(line)))
            .collect()
    }

    #[test]
    fn each_input_has_its_own_text_and_lines() {
        let mut capture = capture();
        let written = [
            b"early\n",
            &mark(&TOKEN, 1)[..],
            b"one\r\ntw",
            &mark(&TOKEN, 2),
            b"o",
        ]
        .concat();
        for byte in written {
            capture.take(0, &[byte]);
        }
        capture.take(1, &[&mark(&TOKEN, 2)[..], b"error\n"].concat());
        capture.end_lines();
        let expected = [
            (None, Side::Out, "early"),
            (Some(1), Side::Out, "one"),
            (Some(1), Side::Out, "tw"),
            (Some(2), Side::Err, "error"),
            (Some(2), Side::Out, "o"),
        ];
        let expected = expected.map(|(input, side, text)| (input, side, text.to_owned()));
        assert_eq!(lines(&mut capture), expected);
        assert_eq!(capture.take_early_text(), "early\n");
        assert_eq!(capture.take_text_of(2), "oerror\n");
        assert_eq!(capture.take_text_of(1), "one\r\ntw");
        assert_eq!(capture.take_text_of(1), "");
        assert_eq!(capture.size, 0);
    }

    #[test]
    fn numbers_wrap_around_and_what_comes_late_is_forgotten() {
        let mut capture = capture();
        for before in [u32::MAX / 3, u32::MAX / 3 * 2, u32::MAX - 1] {
            capture.forget_until(before);
        }
        for input in [u32::MAX, 0, 1, 2, u32::MAX - 1] {
            capture.keep(input, input.to_string().as_bytes());
        }
        capture.forget_until(0);
        assert_eq!(capture.take_text_of(u32::MAX - 1), "");
        assert_eq!(capture.take_text_of(u32::MAX), "");
        assert_eq!(capture.take_text_of(1), "1");
        assert_eq!(capture.take_text_of(2), "2");
        assert_eq!((capture.size, capture.kept.len()), (0, 0));
    }

    #[test]
    fn the_end_of_a_long_text_is_kept_and_long_lines_are_cut() {
        let mut capture = capture();
        let text = "\u{e9}".repeat(KEPT);
        capture.take(0, &[&mark(&TOKEN, 1)[..], b".", text.as_bytes()].concat());
        capture.end_lines();
        let parts: Vec<usize> = lines(&mut capture)
            .iter()
            .map(|line| line.2.len())
            .collect();
        assert_eq!(parts, [LINE_MAX - 1, LINE_MAX, 2]);
        assert_eq!(capture.take_text_of(1), "\u{e9}".repeat(KEPT / 2));
    }

    proptest! {
        /// Whatever a worker writes, what is kept has bounds.
        #[test]
        fn a_hostile_worker_changes_nothing_but_its_own_texts(
            writes in prop::collection::vec(
                (0_usize..2, any::<u32>(), prop::bool::ANY, 0_usize..3000),
                0..100,
            ),
            forgets in prop::collection::vec(any::<u32>(), 0..10),
        ) {
            let mut capture = capture();
            let each = writes.len() / (forgets.len() + 1) + 1;
            let mut forgets = forgets.into_iter();
            for (number, (stream, input, small, len)) in writes.into_iter().enumerate() {
                let input = if small { input % 8 } else { input };
                capture.take(stream, &mark(&TOKEN, input));
                capture.take(stream, &b"text\n".repeat(len));
                if number % each == each - 1 {
                    forgets.next().into_iter().for_each(|until| capture.forget_until(until));
                }
                let size = capture.kept.values().map(|tail| tail.0.len()).sum();
                prop_assert_eq!(capture.size, size);
                prop_assert!(capture.size <= TEXT_MAX && capture.kept.len() <= INPUTS_MAX);
                prop_assert!(capture.early.0.len() <= KEPT);
                capture.take_lines_read();
            }
        }
    }
}
