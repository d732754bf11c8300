//! What a worker writes to standard output and standard error, told apart by inputs: both ends.
//!
//! Both are pipes to the parent then. Before each input the worker writes a *mark* into both: a token that only parent and worker
//! know, and the number of the input. A mark is shorter than what the system writes to a pipe in one piece, so it is never mixed with
//! other text. What stands between two marks belongs to the input of the first.
//!
//! The parent reads without waiting. It keeps the last [`KEPT`] bytes of each input, until that input's outcome is known.
//! A worker that is under the control of its input may forge marks: then its own inputs get wrong texts, and nobody else's.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::greeting::Own;
use crate::scarce::no;

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

/// What tells a mark from text.
pub(crate) type Token = [u8; 16];

/// A mark: the token, and the number of the input that begins; 0, if none does.
const MARK: usize = size_of::<Token>() + size_of::<u32>();

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
        })
    }

    /// What is written from now on belongs to this input; or to none, if it is 0.
    pub(crate) fn mark(&self, input: u32) {
        let mut mark = [0; MARK];
        let (token, number) = mark.split_at_mut(size_of::<Token>());
        token.copy_from_slice(&self.token);
        number.copy_from_slice(&input.to_le_bytes());
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

/// What a worker gets: the ends that it writes to.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) token: Token,
    pub(crate) out: OwnedFd,
    pub(crate) err: OwnedFd,
}

/// What a worker has written, as far as it was read.
#[derive(Debug)]
pub struct Capture {
    streams: [Stream; 2],
    /// What inputs have written, in the order of their numbers.
    kept: VecDeque<Kept>,
    /// How many bytes that is.
    size: usize,
    /// What was written when no input had begun.
    early: Tail,
    /// Lines, if they are wanted.
    lines: Option<Vec<Line>>,
}

#[derive(Debug)]
struct Kept {
    input: u32,
    tail: Tail,
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
    pub(crate) fn create(token: Token, lines: bool) -> io::Result<(Capture, Ends)> {
        let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
            fcntl_setfl(&ours, OFlags::NONBLOCK)?;
            Ok((ours, theirs))
        };
        let unmade = no("pipe for the output of a worker");
        let ((our_out, out), (our_err, err)) = (pipe().map_err(&unmade)?, pipe().map_err(&unmade)?);
        let stream = |side, pipe| Stream {
            side,
            pipe: Some(pipe),
            splitter: Splitter::new(token),
            input: 0,
            line: Vec::new(),
        };
        let capture = Capture {
            streams: [stream(Side::Out, our_out), stream(Side::Err, our_err)],
            kept: VecDeque::new(),
            size: 0,
            early: Tail::default(),
            lines: lines.then(Vec::new),
        };
        Ok((capture, Ends { token, out, err }))
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
                0
            }
            Ok(len) => {
                self.take(stream, &buffer[..len]);
                len
            }
            Err(Errno::INTR) => self.read_from(stream),
            // A mark comes in one piece, so what looks like the beginning of one is none.
            Err(_) => {
                let held = self.streams[stream].splitter.release();
                self.take_text(stream, &held);
                0
            }
        }
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

    fn keep(&mut self, input: u32, text: &[u8]) {
        // Mostly it is the last one.
        let place = self.kept.iter().rposition(|kept| kept.input == input);
        let place = place.unwrap_or_else(|| {
            let is_before = |kept: &Kept| (input.wrapping_sub(kept.input) as i32) > 0;
            let place = self.kept.iter().rposition(is_before);
            let place = place.map_or(0, |before| before + 1);
            let tail = Tail::default();
            self.kept.insert(place, Kept { input, tail });
            place
        });
        self.size += self.kept[place].tail.push(text);
        while self.kept.len() > INPUTS_MAX || self.size > TEXT_MAX {
            let oldest = self.kept.pop_front();
            self.size -= oldest.map_or(0, |oldest| oldest.tail.0.len());
        }
    }

    /// What this input has written.
    pub fn take_text_of(&mut self, input: u32) -> String {
        let place = self.kept.iter().position(|kept| kept.input == input);
        let kept = place.and_then(|place| self.kept.remove(place));
        let tail = kept.map(|kept| kept.tail).unwrap_or_default();
        self.size -= tail.0.len();
        tail.text()
    }

    /// What was written before the first input, as far as it was not taken.
    pub fn take_early_text(&mut self) -> String {
        std::mem::take(&mut self.early).text()
    }

    /// What inputs up to this number have written is needed no more.
    pub fn forget_until(&mut self, input: u32) {
        while let Some(first) = self.kept.front()
            && (input.wrapping_sub(first.input) as i32) >= 0
        {
            self.size -= first.tail.0.len();
            self.kept.pop_front();
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
            let rest = self.streams[stream].line.split_off(LINE_MAX);
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

/// A part of what was written.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a [u8]),
    Mark(u32),
}

/// Tells marks from text, however it comes in pieces.
#[derive(Debug, Default)]
struct Splitter {
    token: Token,
    /// What may be the beginning of a mark.
    held: Vec<u8>,
}

impl Splitter {
    fn new(token: Token) -> Splitter {
        Splitter {
            token,
            held: Vec::new(),
        }
    }

    fn feed(&mut self, bytes: &[u8], mut tell: impl FnMut(Part<'_>)) {
        let mut joined = std::mem::take(&mut self.held);
        let mut text = if joined.is_empty() {
            bytes
        } else {
            joined.extend_from_slice(bytes);
            &joined[..]
        };
        let mut from = 0;
        while let Some(at) = text[from..].iter().position(|byte| *byte == self.token[0]) {
            let at = from + at;
            let rest = &text[at..];
            let len = rest.len().min(self.token.len());
            if rest[..len] != self.token[..len] {
                from = at + 1;
                continue;
            }
            if rest.len() < MARK {
                self.held = rest.to_vec();
                text = &text[..at];
                break;
            }
            if at > 0 {
                tell(Part::Text(&text[..at]));
            }
            let (mark, behind) = rest.split_at(MARK);
            let number = mark
                .last_chunk()
                .map_or(0, |bytes| u32::from_le_bytes(*bytes));
            tell(Part::Mark(number));
            text = behind;
            from = 0;
        }
        if !text.is_empty() {
            tell(Part::Text(text));
        }
    }

    /// What was held is text.
    fn release(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}
