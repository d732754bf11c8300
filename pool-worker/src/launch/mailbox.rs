//! The receiving end of a worker: its greeting, its messages, its end.

use std::collections::VecDeque;
use std::fmt;
use std::mem::MaybeUninit;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipc_channel::ipc::IpcBytesReceiver;
use serde_bytes::Bytes;

use super::{Event, Link, Report, Setup, Worker, read_records};
use crate::bootstrap::Server;
use crate::codec::Reader;
use crate::ledger::Ledger;
use crate::link::channel::{self, Outbox};
use crate::protocol::{self, Assembly, Greeting, Hello, Initializer, Piece, Reply, Request};
use crate::registry;

/// The receiving end of a worker, for one thread.
#[derive(Debug)]
pub struct Mailbox {
    worker: Worker,
    stage: Stage,
    /// The initializer is through.
    initialized: bool,
    /// What was found, and not yet handed out.
    ready: VecDeque<Event>,
}

enum Stage {
    /// Started; has not said hello.
    Expected {
        server: Server,
        token: String,
        setup: Option<Setup>,
    },
    /// Said hello.
    Known {
        link: Arc<Link>,
        replies: IpcBytesReceiver,
        assembly: Assembly,
        /// The number of the next message with outcomes.
        epoch: u32,
    },
    /// Nothing more can be read, or will be.
    Silent,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Expected { .. } => "Expected",
            Stage::Known { .. } => "Known",
            Stage::Silent => "Silent",
        })
    }
}

impl Mailbox {
    pub(super) fn new(
        worker: Worker,
        server: Server,
        token: String,
        setup: Option<Setup>,
    ) -> Mailbox {
        Mailbox {
            worker,
            stage: Stage::Expected {
                server,
                token,
                setup,
            },
            initialized: false,
            ready: VecDeque::new(),
        }
    }

    /// Waits for what the worker says next. After [`Event::Died`] it must not be called again.
    ///
    /// The calling thread takes no signals from then on.
    pub fn receive(&mut self) -> Event {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            match std::mem::replace(&mut self.stage, Stage::Silent) {
                Stage::Expected {
                    server,
                    token,
                    setup,
                } => match self.accept(server, &token, setup) {
                    Ok(known) => self.stage = known,
                    Err(why) => return Event::Garbled(why),
                },
                Stage::Known {
                    link,
                    replies,
                    mut assembly,
                    mut epoch,
                } => match self.read(&link, &replies, &mut assembly, &mut epoch) {
                    Ok(true) => {
                        self.stage = Stage::Known {
                            link,
                            replies,
                            assembly,
                            epoch,
                        };
                    }
                    Ok(false) => {}
                    Err(why) => return Event::Garbled(why),
                },
                Stage::Silent => return Event::Died(self.worker.wait_for_exit()),
            }
        }
    }

    fn accept(&self, server: Server, token: &str, setup: Option<Setup>) -> Result<Stage, String> {
        block_signals();
        // ipc-channel asserts where it maps memory and counts descriptors: a process that runs out
        // of either must not lose a thread to that.
        let greeting = panic::catch_unwind(AssertUnwindSafe(|| server.accept()))
            .map_err(|_| "no memory or no descriptor left for its channels".to_owned());
        // Nobody waits behind the door any more, and a connection to nobody would leak.
        self.worker.state().door = None;
        let hello = match greeting? {
            Ok((_, Greeting::Hello(hello))) => hello,
            Ok((_, Greeting::GiveUp)) => return Ok(Stage::Silent),
            // It died between connecting and saying hello.
            Err(ipc_channel::IpcError::Disconnected) => return Ok(Stage::Silent),
            Err(error) => return Err(format!("its greeting can't be read: {error}")),
        };
        if hello.token != token {
            return Err("somebody else answered in its place".to_owned());
        }
        if hello.version != protocol::VERSION || hello.fingerprint != registry::fingerprint() {
            return Err("it is another program: its protocol or its tasks differ".to_owned());
        }
        let Hello {
            requests,
            replies,
            end,
            ledger,
            ..
        } = hello;
        let ledger = Ledger::new(ledger).ok_or("its shared memory is too small")?;
        let link = Arc::new(Link {
            outbox: Outbox::new(requests),
            end,
            ledger,
            seen: Mutex::default(),
        });
        {
            let mut state = self.worker.state();
            if state.exit.is_some() {
                channel::mark_end(&link.end);
            }
            state.link = Some(Arc::clone(&link));
        }
        self.worker
            .request(&Request::Setup(setup.as_ref().map(|setup| Initializer {
                task: setup.task,
                args: Bytes::new(&setup.args),
            })));
        Ok(Stage::Known {
            link,
            replies,
            assembly: Assembly::default(),
            epoch: 0,
        })
    }

    /// Reads one frame. False: there is nothing more to read.
    fn read(
        &mut self,
        link: &Link,
        replies: &IpcBytesReceiver,
        assembly: &mut Assembly,
        epoch: &mut u32,
    ) -> Result<bool, String> {
        let Ok(frame) = channel::receive(replies) else {
            return Err("its channel broke".to_owned());
        };
        match assembly.add(&frame) {
            Piece::Part => Ok(true),
            Piece::Whole(message) => {
                self.understand(link, &message, epoch)
                    .map_err(|error| format!("it sent what is no message: {error}"))?;
                Ok(true)
            }
            Piece::End => {
                // A worker may write a mark as well; it is true once the worker is dead.
                self.worker.wait_for_exit();
                let mut outcomes = link.peek();
                match outcomes.pop() {
                    // A build that aborts on a panic leaves that of the initializer here, too.
                    Some(Err(fault)) if !self.initialized => {
                        self.ready.push_back(Event::Failed(*fault));
                    }
                    Some(last) => {
                        outcomes.push(last);
                        self.ready.push_back(Event::Outcomes(Report {
                            epoch: None,
                            outcomes,
                            busy: Duration::ZERO,
                        }));
                    }
                    None => {}
                }
                Ok(false)
            }
            Piece::Bad => Err("it sent what is no frame".to_owned()),
        }
    }

    fn understand(&mut self, link: &Link, message: &[u8], epoch: &mut u32) -> Result<(), String> {
        let (taken, message) = message.split_first_chunk().ok_or("it is cut short")?;
        let mut reader = Reader::new(message);
        let reply: Reply = reader.take_owned().map_err(|error| error.to_string())?;
        match reply {
            Reply::Ready => {
                self.initialized = true;
                self.ready.push_back(Event::Ready);
            }
            Reply::Failed(fault) => self.ready.push_back(Event::Failed(fault)),
            Reply::Taken => {}
            Reply::Outcomes {
                epoch: number,
                busy_ns,
            } => {
                if number != *epoch {
                    return Err("a message is missing".to_owned());
                }
                *epoch = epoch.wrapping_add(1);
                self.ready.push_back(Event::Outcomes(Report {
                    epoch: Some(number),
                    outcomes: read_records(reader),
                    busy: Duration::from_nanos(busy_ns),
                }));
            }
        }
        link.outbox
            .taken(u32::from_le_bytes(*taken))
            .map_err(|error| error.to_string())
    }
}

/// Keeps signals away from this thread, now and later: `accept` of ipc-channel gives up after one,
/// and can't be called again. A handler of the program's runs on one of the program's threads.
fn block_signals() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: initializes the set.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the set is initialized; nobody asks for the old one.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), ptr::null_mut()) };
}
