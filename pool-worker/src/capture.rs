//! Captures what a worker writes to standard output and standard error, separately for each input: both ends.
//!
//! Both streams are pipes to the parent. Before each input the worker writes a *mark* into both: a token that only parent and
//! worker know, and the number of the input. A mark is short enough that the system writes it to a pipe in one piece, so it
//! is never mixed with other text. The text between two marks belongs to the input of the first.
//!
//! The parent reads without waiting. It keeps the last [`KEPT`] bytes of each input until that input's outcome is known. A
//! worker that a malicious input has taken over may forge marks: then the texts of its own inputs are wrong, but no others.
//!
//! The parent reads under the pool's lock, so each read is bounded: usually by [`TURN`]; when an outcome has arrived, by what
//! the pipes hold at that time. Lines that were written one after the other stay one text, since a `String` for each of many
//! short lines would take far more time and memory than the lines themselves.

mod splitter;

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{Errno, ioctl_fionread};
use rustix::pipe::{PipeFlags, pipe_with};

pub(crate) use self::splitter::Token;
use self::splitter::{Part, Splitter, mark};
use crate::greeting::Own;
use crate::scarce::{fill_randomly, no};

/// How many bytes of the output of an input are kept: the last ones.
pub const KEPT: usize = 64 << 10;

/// A line that is longer than this, in bytes, is reported in parts.
const LINE_MAX: usize = KEPT;

/// How many bytes are read at a time.
const READ: usize = 32 << 10;

/// How many bytes of each stream [`Capture::read`] reads at most, and after how many passages it stops.
const TURN: usize = 64 << 10;
const PASSAGES_MAX: usize = 1000;

/// How many bytes of each stream [`Capture::read_rest`] reads at most: what a pipe holds at most, unless a privileged process
/// has enlarged it.
const REST_MAX: usize = 1 << 20;

/// When text of more inputs than this, or more text, is kept, the oldest is dropped.
const INPUTS_MAX: usize = 1 << 14;
const TEXT_MAX: usize = 16 << 20;

/// To which stream a worker wrote something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Descriptor 1.
    Out,
    /// Descriptor 2.
    Err,
}

/// One or more lines that a worker wrote to one stream, one right after the other, while one input ran.
#[derive(Debug, PartialEq, Eq)]
pub struct Passage {
    /// The input that ran, as the worker numbers the inputs that it has begun; `None` if none did.
    pub input: Option<u32>,
    /// The stream.
    pub side: Side,
    /// The lines, with `\n` between them, but not at the end: at most 64 KiB.
    pub text: Vec<u8>,
}

// ---- the worker's side ----------------------------------------------------------------------------

/// Writes the marks.
pub(crate) struct Marks {
    token: Token,
    /// The pipes, as separate descriptors: a task may open something else as descriptors 1 and 2.
    pipes: [Own; 2],
    /// Whether output belongs to an input now.
    within: Cell<bool>,
}

impl Marks {
    /// Makes these pipes standard output and standard error.
    pub(crate) fn begin(token: Token, out: OwnedFd, err: OwnedFd) -> io::Result<Marks> {
        let unmade = |error: Errno| no("descriptor for its output")(error.into());
        rustix::stdio::dup2_stdout(&out).map_err(unmade)?;
        rustix::stdio::dup2_stderr(&err).map_err(unmade)?;
        unbuffer();
        Ok(Marks {
            token,
            pipes: [Own::new(out), Own::new(err)],
            within: Cell::new(false),
        })
    }

    /// Output belongs to no input from now on.
    pub(crate) fn end(&self) {
        if self.within.replace(false) {
            self.mark(0);
        }
    }

    /// Output belongs to this input from now on.
    pub(crate) fn begin_input(&self, input: u32) {
        self.within.set(true);
        self.mark(input);
    }

    fn mark(&self, input: u32) {
        let mark = mark(&self.token, input);
        for pipe in &self.pipes {
            // If a task has closed it, no mark is written.
            if let Some(pipe) = pipe.get() {
                write_whole(pipe, &mark);
            }
        }
    }
}

/// Writes a mark, even if a task has made the pipe non-blocking, and it is full.
fn write_whole(pipe: BorrowedFd<'_>, mark: &[u8]) {
    loop {
        match rustix::io::write(pipe, mark) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(pipe, PollFlags::OUT)], None);
            }
            _ => return,
        }
    }
}

/// Makes C's standard output unbuffered, since what is in its buffer would be lost if the process crashed.
fn unbuffer() {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
    }
    // SAFETY: set by the C library; there is only one thread.
    let file = unsafe { stdout };
    // SAFETY: as above; without buffering, no buffer needs to be passed.
    unsafe { libc::setvbuf(file, std::ptr::null_mut(), libc::_IONBF, 0) };
}

// ---- the parent's side ----------------------------------------------------------------------------

/// Makes a token that won't occur in text by chance.
fn new_token() -> io::Result<Token> {
    let mut token = Token::default();
    // Its first byte stays 0, which is rare in text, so that most text is quickly seen not to be a mark.
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

/// The ends of the pipes that workers write to.
#[derive(Debug)]
pub struct Ends {
    pub(crate) token: Token,
    pub(crate) out: OwnedFd,
    pub(crate) err: OwnedFd,
}

/// The output of a worker that was read so far.
#[derive(Debug)]
pub struct Capture {
    streams: [Stream; 2],
    /// The output of inputs, by their numbers, which don't wrap around here.
    kept: BTreeMap<i64, Tail>,
    /// The size of `kept`, in bytes.
    size: usize,
    /// The output of inputs up to this number is no longer needed.
    forgotten: i64,
    /// The output before the first input.
    early: Tail,
    /// Lines that were not taken yet, if lines are wanted.
    passages: Option<Vec<Passage>>,
}

/// The end of a text.
#[derive(Debug, Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    /// Appends a text, and returns by how many bytes the tail has grown.
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

/// One of the two streams.
#[derive(Debug)]
struct Stream {
    side: Side,
    /// `None` when all its writers have closed it.
    pipe: Option<OwnedFd>,
    splitter: Splitter,
    input: u32,
    /// The beginning of a line whose end was not read yet.
    line: Vec<u8>,
}

impl Capture {
    /// Makes the pipes; the worker gets the [`Ends`]. `lines`: whether lines are wanted.
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

    /// Captures the lines of all workers of a pool, without telling which worker wrote them. The workers are
    /// [started](crate::Output::Common) with the ends.
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left.
    pub fn of_all() -> io::Result<(Capture, Ends)> {
        Capture::create(true)
    }

    /// Whether a process may still write.
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
            passages: lines.then(Vec::new),
        }
    }

    /// The descriptors that are readable when there is something to [read](Capture::read).
    pub fn pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let streams = self.streams.iter();
        streams.filter_map(|stream| Some(stream.pipe.as_ref()?.as_fd()))
    }

    /// Reads a part of what is there, without waiting. Returns how many bytes that was. To be called again when a pipe is
    /// readable.
    pub fn read(&mut self) -> usize {
        self.read_up_to([TURN; 2], PASSAGES_MAX)
    }

    /// Reads at least everything that was written before this call, without waiting. Returns how many bytes that was.
    pub fn read_rest(&mut self) -> usize {
        let held = |stream: &Stream| {
            let held = stream
                .pipe
                .as_ref()
                .and_then(|pipe| ioctl_fionread(pipe).ok());
            // One byte more, so that it is noticed that the pipe is empty or closed.
            held.map_or(0, |held| REST_MAX.min(held as usize) + 1)
        };
        let [out, err] = &self.streams;
        self.read_up_to([held(out), held(err)], usize::MAX)
    }

    /// Reads at least everything that was written before this call, and ends the lines that have begun, since the worker is
    /// dead. Returns how many bytes that was.
    pub fn read_last(&mut self) -> usize {
        let read = self.read_rest();
        self.end_lines();
        read
    }

    /// Reads from both streams in turn, until these limits are reached, or nothing is left.
    fn read_up_to(&mut self, most: [usize; 2], passages: usize) -> usize {
        let mut read = [0; 2];
        loop {
            let before = read;
            for stream in 0..self.streams.len() {
                if read[stream] < most[stream] && self.count_passages() < passages {
                    read[stream] += self.read_from(stream);
                }
            }
            if read == before {
                return read.iter().sum();
            }
        }
    }

    fn count_passages(&self) -> usize {
        self.passages.as_ref().map_or(0, Vec::len)
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

    /// Nothing follows for now, so what looks like the beginning of a mark is text.
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
        if self.passages.is_some() {
            self.take_lines(stream, text);
        }
    }

    /// The number of an input without wrap-around, however often the worker's counter has wrapped.
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

    /// Takes the output of this input.
    pub fn take_text_of(&mut self, input: u32) -> String {
        let tail = self.kept.remove(&self.widen(input)).unwrap_or_default();
        self.size -= tail.0.len();
        tail.text()
    }

    /// Takes the output from before the first input.
    pub fn take_early_text(&mut self) -> String {
        std::mem::take(&mut self.early).text()
    }

    /// Drops the output of inputs up to this number.
    pub fn forget_until(&mut self, input: u32) {
        self.forgotten = self.forgotten.max(self.widen(input));
        while let Some(oldest) = self.kept.first_entry()
            && *oldest.key() <= self.forgotten
        {
            self.size -= oldest.remove().0.len();
        }
    }

    /// Takes the lines that were read since the last call.
    pub fn take_passages(&mut self) -> Vec<Passage> {
        self.passages
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    fn take_lines(&mut self, stream: usize, text: &[u8]) {
        let is_end = |byte: &u8| *byte == b'\n';
        let Some(end) = text.iter().rposition(is_end) else {
            return self.lengthen_line(stream, text);
        };
        let (mut whole, rest) = (&text[..end], &text[end + 1..]);
        // Only a line that has begun before can be too long, since less than that is read at a time.
        while self.streams[stream].line.len() + whole.len() > LINE_MAX
            && let Some(end) = whole.iter().position(is_end)
        {
            self.lengthen_line(stream, &whole[..end]);
            self.tell_lines(stream);
            whole = &whole[end + 1..];
        }
        self.lengthen_line(stream, whole);
        self.tell_lines(stream);
        self.lengthen_line(stream, rest);
    }

    /// Appends to what was not told yet, and tells parts of a line that is too long.
    fn lengthen_line(&mut self, stream: usize, text: &[u8]) {
        self.streams[stream].line.extend_from_slice(text);
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
            self.tell_lines(stream);
            self.streams[stream].line = rest;
        }
    }

    /// Ends a line that has begun.
    fn end_line(&mut self, stream: usize) {
        if !self.streams[stream].line.is_empty() {
            self.tell_lines(stream);
        }
    }

    fn end_lines(&mut self) {
        for stream in 0..self.streams.len() {
            self.end_line(stream);
        }
    }

    fn tell_lines(&mut self, stream: usize) {
        let stream = &mut self.streams[stream];
        let text = std::mem::take(&mut stream.line);
        if let Some(passages) = &mut self.passages {
            passages.push(Passage {
                input: (stream.input != 0).then_some(stream.input),
                side: stream.side,
                text: without_returns(text),
            });
        }
    }
}

/// Removes each `\r` at the end of a line.
fn without_returns(mut text: Vec<u8>) -> Vec<u8> {
    if text.contains(&b'\r') {
        let mut to = 0;
        for from in 0..text.len() {
            let is_end = text.get(from + 1).is_none_or(|next| *next == b'\n');
            if text[from] != b'\r' || !is_end {
                text[to] = text[from];
                to += 1;
            }
        }
        text.truncate(to);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use proptest::prelude::*;

    use super::*;

    const TOKEN: Token = *b"a token of a box";

    fn capture() -> Capture {
        Capture::over(TOKEN, true, [None, None])
    }

    fn lines(capture: &mut Capture) -> Vec<(Option<u32>, Side, String)> {
        let passages = capture.take_passages().into_iter();
        let split = passages.flat_map(|passage| {
            let text = String::from_utf8(passage.text).expect("text");
            let lines = text.split('\n').map(str::to_owned);
            let lines = lines.map(|line| (passage.input, passage.side, line));
            lines.collect::<Vec<_>>()
        });
        split.collect()
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

    /// A capture of real pipes, and the ends to write to.
    fn over_pipes() -> (Capture, [fs::File; 2]) {
        let (capture, ends) = Capture::create(true).expect("two pipes");
        (capture, [ends.out, ends.err].map(fs::File::from))
    }

    /// Fills a pipe, and returns how much that is.
    fn fill(pipe: &fs::File, block: &[u8]) -> usize {
        fcntl_setfl(pipe, OFlags::NONBLOCK).expect("a pipe");
        let written = std::iter::from_fn(|| rustix::io::write(pipe, block).ok());
        written.sum()
    }

    #[test]
    fn many_short_lines_are_few_texts_and_are_read_in_turns() {
        let (mut capture, [out, err]) = over_pipes();
        let size = rustix::pipe::fcntl_setpipe_size(&out, REST_MAX).expect("as large as that");
        assert_eq!(size, REST_MAX);
        let written = [fill(&out, &[b'\n'; 4096]), fill(&err, b"\n")];
        assert_eq!(written[0], REST_MAX);
        assert_eq!(capture.read(), TURN + written[1]);
        let read = capture.take_passages();
        assert!(read.len() <= 4, "{}", read.len());
        let rest = capture.read_rest();
        assert_eq!(rest, written[0] - TURN);
        let rest = capture.take_passages();
        assert!(rest.len() <= REST_MAX / READ, "{}", rest.len());
        let lines = |passage: &Passage| passage.text.split(|byte| *byte == b'\n').count();
        let all: usize = read.iter().chain(&rest).map(lines).sum();
        assert_eq!(all, written.iter().sum());
    }

    #[test]
    fn a_turn_ends_after_a_number_of_passages() {
        let (mut capture, [out, _err]) = over_pipes();
        let token = capture.streams[0].splitter.token();
        let each: Vec<u8> = (1..=3000)
            .flat_map(|input| [&mark(&token, input)[..], b"."].concat())
            .collect();
        let written = rustix::io::write(&out, &each).expect("it has room");
        assert_eq!(written, each.len());
        assert_eq!(capture.read(), READ);
        let told = capture.take_passages().len();
        assert!((PASSAGES_MAX..3000).contains(&told), "{told}");
        assert_eq!(capture.read_last(), written - READ);
        assert_eq!(told + capture.take_passages().len(), 3000);
        assert_eq!(capture.take_text_of(3000), ".");
    }

    #[test]
    fn the_rest_is_what_was_written_and_shows_that_the_pipe_is_closed() {
        let (mut capture, [out, err]) = over_pipes();
        // It looks like the beginning of a mark.
        rustix::io::write(&out, b"zero\0").expect("it has room");
        assert_eq!(capture.read_rest(), 5);
        assert_eq!(capture.take_early_text(), "zero\0");
        drop((out, err));
        assert!(capture.is_open());
        assert_eq!(capture.read_last(), 0);
        assert!(!capture.is_open());
        let told: Vec<_> = lines(&mut capture).into_iter().map(|line| line.2).collect();
        assert_eq!(told, ["zero\0"]);
    }

    #[test]
    fn a_mark_is_written_to_a_full_pipe_that_does_not_block() {
        let (mut capture, [out, err]) = over_pipes();
        let token = capture.streams[0].splitter.token();
        let filled = fill(&out, &[b'.'; 4096]);
        let marks = Marks {
            token,
            pipes: [out, err].map(|end| Own::new(end.into())),
            within: Cell::new(false),
        };
        thread::scope(|scope| {
            let marking = scope.spawn(move || marks.begin_input(7));
            let mut read = 0;
            while !marking.is_finished() || capture.streams[1].input != 7 {
                read += capture.read();
            }
            read += capture.read();
            assert_eq!(read, filled + 2 * size_of_val(&mark(&token, 7)));
        });
        assert_eq!(capture.streams.map(|stream| stream.input), [7, 7]);
    }

    #[test]
    fn ends_of_lines_are_removed() {
        for (text, lines) in [
            ("", ""),
            ("\r", ""),
            ("a\r\nb\r\r\n\r\n\rc\r", "a\nb\r\n\n\rc"),
        ] {
            assert_eq!(without_returns(text.into()), lines.as_bytes());
        }
    }

    proptest! {
        /// Lines do not depend on how the text arrives.
        #[test]
        fn lines_are_the_same_in_any_pieces(
            pieces in prop::collection::vec("(b|c|\r|\n){0,5}", 0..20),
        ) {
            let mut capture = capture();
            for piece in &pieces {
                capture.take(0, piece.as_bytes());
            }
            capture.end_lines();
            let told: Vec<_> = lines(&mut capture).into_iter().map(|line| line.2).collect();
            let whole = pieces.concat();
            let expected: Vec<_> = whole
                .split_inclusive('\n')
                .map(|line| line.strip_suffix('\n').unwrap_or(line))
                .map(|line| line.strip_suffix('\r').unwrap_or(line))
                .collect();
            prop_assert_eq!(told, expected);
        }

        /// Whatever a worker writes, the kept text stays within its bounds.
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
                capture.take_passages();
            }
        }
    }
}
