//! Standard output and standard error of a sandboxed worker.
//!
//! They are open files of the parent, and mostly of the shell that has started it, too. What is set on an open file holds for
//! all: if a worker made writes to it return at once when they would wait, the parent's would fail. And a terminal is open
//! for reading, so a worker could take what the user types. So a sandboxed worker opens both once more, only for writing.

use std::io::IsTerminal;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat, open};
use rustix::stdio::{dup2_stderr, dup2_stdout, stderr, stdout};

/// Opens both once more, where that is possible: not if it is a socket, nor a file whose position others share.
pub(super) fn reopen() {
    if let Some(own) = reopened(stdout()) {
        let _ = dup2_stdout(own);
    }
    if let Some(own) = reopened(stderr()) {
        let _ = dup2_stderr(own);
    }
}

fn reopened(stream: BorrowedFd<'_>) -> Option<OwnedFd> {
    let flags = fcntl_getfl(stream).ok()?;
    let is_possible = match FileType::from_raw_mode(fstat(stream).ok()?.st_mode) {
        FileType::Fifo => true,
        FileType::CharacterDevice => stream.is_terminal(),
        FileType::RegularFile => flags.contains(OFlags::APPEND),
        _ => false,
    };
    if !is_possible || flags & OFlags::RWMODE == OFlags::RDONLY {
        return None;
    }
    let kept = flags & (OFlags::APPEND | OFlags::NONBLOCK | OFlags::DIRECT);
    // To open a named pipe that nobody reads would otherwise wait.
    let how = kept | OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
    let own = open(path, how, Mode::empty()).ok()?;
    fcntl_setfl(&own, kept).ok()?;
    Some(own)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use rustix::io::{Errno, read};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    /// Makes writes not wait.
    fn hurry(stream: impl AsFd) {
        let flags = fcntl_getfl(&stream).expect("it is open");
        fcntl_setfl(&stream, flags | OFlags::NONBLOCK).expect("it can be set");
    }

    #[test]
    fn what_is_set_on_a_pipe_does_not_hold_for_others() {
        let waits = |stream: &OwnedFd| {
            let flags = fcntl_getfl(stream).expect("it is open");
            !flags.contains(OFlags::NONBLOCK)
        };
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).expect("there are descriptors");
        let own = reopened(ours.as_fd()).expect("it is a pipe");
        assert!(waits(&own));
        hurry(&own);
        assert!(!waits(&own) && waits(&ours));
        drop(ours);
        File::from(own).write_all(b"ours").expect("it is read");
        let mut text = String::new();
        let read = File::from(theirs).read_to_string(&mut text);
        read.expect("it ends");
        assert_eq!(text, "ours");
    }

    #[test]
    fn a_file_keeps_its_position() {
        let path = std::env::temp_dir().join(format!("pool-streams-{}", std::process::id()));
        let plain = File::create(&path).expect("it can be created");
        assert!(reopened(plain.as_fd()).is_none());
        let both = File::options().append(true).read(true).open(&path);
        let mut log = both.expect("it exists");
        log.write_all(b"before").expect("there is room");
        let own = reopened(log.as_fd()).expect("its position does not matter");
        assert_eq!(read(&own, &mut [0; 8]), Err(Errno::BADF));
        File::from(own)
            .write_all(b", after")
            .expect("there is room");
        assert_eq!(fs::read(&path).expect("it exists"), b"before, after");
        fs::remove_file(&path).expect("it exists");
    }
}
