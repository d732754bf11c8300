//! Bytes that many inputs have in common, and that a worker gets once: the arguments that `partial` binds, and what is
//! [shared](crate::shared).
//!
//! In the parent they are an [`Attachment`], which every portion that needs it holds. Before such a portion a worker is
//! sent the attachment, if it does not have it yet: short ones lie in the ring of requests, long ones in memory of their own
//! that all workers map, and that comes to each as a descriptor. The worker keeps what it got, an [`Attached`], until it
//! is told that nobody holds the attachment any more. For that an attachment remembers whom it was sent to: see
//! [`Freed`].

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{self, ManuallyDrop, MaybeUninit};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
};

use crate::channel::Channel;
use crate::codec::CodecError;
use crate::frames::FRAME_MAX;
use crate::greeting::{self, Own};
use crate::memory::Constant;
use crate::scarce::no;
use crate::shared::Held;
use crate::watch::Waker;

/// Longer ones have memory of their own.
const SHORT_MAX: usize = FRAME_MAX;

// ---- the parent's side ----------------------------------------------------------------------------

/// Bytes that inputs have in common.
pub struct Attachment {
    id: u64,
    content: Option<Content>,
    /// What they refer to.
    holds: Vec<Arc<Attachment>>,
    /// Who is to know when it is dropped.
    holders: Mutex<Vec<Holder>>,
}

/// Who has a copy of an attachment elsewhere.
enum Holder {
    /// Workers of this machine.
    Workers(Weak<Freed>),
    /// Whoever wants to be told the id.
    Other(Box<dyn FnOnce(u64) + Send>),
}

enum Content {
    Short(Arc<Bytes>),
    Long(OwnedFd, usize),
    /// No bytes: by this a worker may send into the channel.
    Channel(Arc<Channel>),
}

/// What a worker is sent of an attachment.
pub(crate) enum Sent<'a> {
    Short(&'a [u8]),
    Long(BorrowedFd<'a>, usize),
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Attachment").field(&self.id).finish()
    }
}

impl Attachment {
    /// Makes one of these bytes, which refer to others.
    ///
    /// # Errors
    ///
    /// If there is no shared memory for them.
    pub fn new(bytes: &[u8], holds: Vec<Arc<Attachment>>) -> io::Result<Arc<Attachment>> {
        Attachment::of(&[bytes], holds)
    }

    /// The same of bytes in several parts.
    ///
    /// # Errors
    ///
    /// As [`new`](Attachment::new).
    pub fn of(parts: &[&[u8]], holds: Vec<Arc<Attachment>>) -> io::Result<Arc<Attachment>> {
        Attachment::with_id(next_id(), parts, holds)
    }

    /// By which a worker may send into the channel.
    pub(crate) fn of_channel(id: u64, channel: &Arc<Channel>) -> Arc<Attachment> {
        Arc::new(Attachment {
            id,
            content: Some(Content::Channel(Arc::clone(channel))),
            holds: Vec::new(),
            holders: Mutex::default(),
        })
    }

    /// The channel, if it is one.
    pub fn channel(&self) -> Option<&Arc<Channel>> {
        match &self.content {
            Some(Content::Channel(channel)) => Some(channel),
            _ => None,
        }
    }

    /// The same as one of another process that runs this program, which has this id there. All that is handed to the workers of
    /// one pool must come from one process.
    ///
    /// # Errors
    ///
    /// As [`new`](Attachment::new).
    pub fn with_id(
        id: u64,
        parts: &[&[u8]],
        holds: Vec<Arc<Attachment>>,
    ) -> io::Result<Arc<Attachment>> {
        let len = parts.iter().map(|part| part.len()).sum();
        let content = if len <= SHORT_MAX {
            Content::Short(Arc::new(Bytes::short(&parts.concat())))
        } else {
            let memory = Constant::create("pool-attachment", parts);
            let memory = memory.map_err(no("shared memory for what tasks have in common"))?;
            Content::Long(memory, len)
        };
        Ok(Arc::new(Attachment {
            id,
            content: Some(content),
            holds,
            holders: Mutex::default(),
        }))
    }

    /// The bytes.
    ///
    /// # Errors
    ///
    /// If there is no room to look at them.
    pub fn bytes(&self) -> io::Result<Arc<Bytes>> {
        match &self.content {
            Some(Content::Short(bytes)) => Ok(Arc::clone(bytes)),
            Some(Content::Long(memory, len)) => {
                let mapped = Constant::open(memory, *len);
                let mapped = mapped.map_err(no("room for what tasks have in common"))?;
                Ok(Arc::new(Bytes::Long(mapped)))
            }
            Some(Content::Channel(_)) | None => Ok(Arc::new(Bytes::short(&[]))),
        }
    }

    /// What they refer to.
    pub fn holds(&self) -> &[Arc<Attachment>] {
        &self.holds
    }

    /// Whether it stands for a channel, or refers to one that does.
    pub fn has_channel(&self) -> bool {
        self.channel().is_some() || self.holds.iter().any(|other| other.has_channel())
    }

    /// Tells it from all others of this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn sent(&self) -> Sent<'_> {
        match &self.content {
            Some(Content::Short(bytes)) => Sent::Short(bytes),
            Some(Content::Long(fd, len)) => Sent::Long(fd.as_fd(), *len),
            Some(Content::Channel(_)) | None => Sent::Short(&[]),
        }
    }

    /// Workers that `freed` stands for are sent this.
    pub(crate) fn is_sent_for(&self, freed: &Arc<Freed>) {
        let mut holders = lock(&self.holders);
        holders.retain(|known| match known {
            Holder::Workers(known) => known.strong_count() > 0,
            Holder::Other(_) => true,
        });
        if !holders.iter().any(|known| match known {
            Holder::Workers(known) => known.as_ptr() == Arc::as_ptr(freed),
            Holder::Other(_) => false,
        }) {
            holders.push(Holder::Workers(Arc::downgrade(freed)));
        }
    }

    /// Has `tell` called with the id when nobody holds this any more. It may be called in any thread, under any lock of a pool's: it
    /// should note the number and wake somebody, and do no more.
    pub fn on_drop(&self, tell: impl FnOnce(u64) + Send + 'static) {
        lock(&self.holders).push(Holder::Other(Box::new(tell)));
    }
}

/// A number for the next one.
pub(crate) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let holders = mem::take(&mut *lock(&self.holders));
        let mut content = self.content.take();
        let is_long = matches!(content, Some(Content::Long(..)));
        for holder in holders {
            match holder {
                Holder::Workers(freed) => {
                    if let Some(freed) = freed.upgrade() {
                        content = freed.note(Noted {
                            id: self.id,
                            is_long,
                            content,
                        });
                    }
                }
                Holder::Other(tell) => tell(self.id),
            }
        }
    }
}

/// The attachments that workers of a pool have and nobody holds any more.
///
/// An attachment is dropped by whoever held it last, which may be a thread that has the pool's lock. So what follows
/// from that is left to the pool, which asks for it.
#[derive(Debug)]
pub struct Freed {
    /// None, when there are no workers any more.
    noted: Mutex<Option<Vec<Noted>>>,
    /// Ends the sleep of whoever asks.
    waker: Waker,
}

/// One of them.
///
/// It takes a while to give long ones back to the system, so they are dropped with this, and not where the attachment was.
#[derive(Debug)]
pub struct Noted {
    id: u64,
    is_long: bool,
    content: Option<Content>,
}

impl Noted {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether it is worth waking a worker to have it give up its part.
    pub fn is_long(&self) -> bool {
        self.is_long
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Content")
    }
}

impl Freed {
    /// None yet. The waker ends the sleep of whoever is to ask.
    pub fn new(waker: Waker) -> Arc<Freed> {
        Arc::new(Freed {
            noted: Mutex::new(Some(Vec::new())),
            waker,
        })
    }

    /// Notes one, and takes its content; or gives that back, if nobody will ask any more.
    fn note(&self, noted: Noted) -> Option<Content> {
        let is_long = noted.is_long;
        match &mut *lock(&self.noted) {
            Some(all) => all.push(noted),
            None => return noted.content,
        }
        // It is not worth a wake-up that workers keep a little more.
        if is_long {
            self.waker.wake();
        }
        None
    }

    /// Those that were freed since the last time.
    pub fn take(&self) -> Vec<Noted> {
        lock(&self.noted).as_mut().map_or_else(Vec::new, mem::take)
    }

    /// There are no workers any more, and nobody will ask. Gives those that were freed since the last time.
    pub fn close(&self) -> Vec<Noted> {
        lock(&self.noted).take().unwrap_or_default()
    }
}

/// Bytes that don't change. They begin where any number may.
pub enum Bytes {
    /// So many, in these words.
    Short(Box<[u128]>, usize),
    /// Mapped.
    Long(Constant),
}

impl Bytes {
    fn short(bytes: &[u8]) -> Bytes {
        let mut words = vec![0_u128; bytes.len().div_ceil(size_of::<u128>())].into_boxed_slice();
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Bytes::Short(words, bytes.len())
    }
}

impl Deref for Bytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Short(words, len) => &bytemuck::cast_slice(words)[..*len],
            Bytes::Long(memory) => memory.bytes(),
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bytes").field(&self.len()).finish()
    }
}

// ---- what is encoded meanwhile --------------------------------------------------------------------

thread_local! {
    /// Whether this thread encodes what goes to a worker, whether something was collected, and the id of one that need
    /// not be collected, for it was before. In one number, since each input changes it.
    static COLLECTING: Cell<u64> = const { Cell::new(0) };
    static COLLECTED: RefCell<Vec<Arc<Attachment>>> = const { RefCell::new(Vec::new()) };
    /// What was collected for those within which another collection has begun.
    static OUTER: RefCell<Vec<Vec<Arc<Attachment>>>> = const { RefCell::new(Vec::new()) };
    /// What a collection that has ended has collected, until it is taken.
    static TAKEN: RefCell<Vec<Arc<Attachment>>> = const { RefCell::new(Vec::new()) };
}

const IS_ON: u64 = 1 << 63;
const ANY: u64 = 1 << 62;
const KNOWN: u64 = ANY - 1;

/// Something is encoded that goes to a worker: what that refers to is collected.
pub(crate) struct Collection {
    before: u64,
}

impl Collection {
    /// Collects from now on; but not what has the id `known`.
    #[inline]
    pub(crate) fn begin(known: u64) -> Collection {
        let before = COLLECTING.replace(IS_ON | known);
        // Encoding something may encode something else, for another pool.
        if before & ANY != 0 {
            set_aside();
        }
        Collection { before }
    }

    /// Gives whether there may be something to [`take`].
    #[inline]
    pub(crate) fn end(self) -> bool {
        let before = self.before;
        mem::forget(self);
        let within = COLLECTING.replace(before);
        if (within | before) & ANY == 0 {
            return false;
        }
        TAKEN.set(go_back(within, before));
        true
    }
}

/// If what encodes panics.
impl Drop for Collection {
    fn drop(&mut self) {
        let within = COLLECTING.replace(self.before);
        go_back(within, self.before);
    }
}

#[cold]
fn set_aside() {
    OUTER.with_borrow_mut(|outer| outer.push(COLLECTED.take()));
}

#[cold]
fn go_back(within: u64, before: u64) -> Vec<Arc<Attachment>> {
    let collected = if within & ANY != 0 {
        COLLECTED.take()
    } else {
        Vec::new()
    };
    if before & ANY != 0 {
        let outer = OUTER.with_borrow_mut(Vec::pop);
        COLLECTED.set(outer.unwrap_or_default());
    }
    collected
}

/// Encodes something, and gives what that refers to.
pub fn collect<R>(encode: impl FnOnce() -> R) -> (R, Vec<Arc<Attachment>>) {
    let collection = Collection::begin(0);
    let result = encode();
    collection.end();
    (result, take())
}

/// What the collection that has just ended has collected.
#[cold]
pub(crate) fn take() -> Vec<Arc<Attachment>> {
    TAKEN.take()
}

/// Notes that what is encoded refers to this. It must go to a worker.
#[inline]
pub(crate) fn refer_to(attachment: &Arc<Attachment>) {
    let collecting = COLLECTING.get();
    if collecting & KNOWN != attachment.id {
        COLLECTING.set(collecting | ANY);
        COLLECTED.with_borrow_mut(|all| add(all, attachment));
    }
}

/// Whether what is encoded goes to a worker.
#[inline]
pub(crate) fn is_collecting() -> bool {
    COLLECTING.get() & IS_ON != 0
}

/// So many of the last ones are looked at whether one is among them already.
const LOOKED_AT: usize = 8;

/// Adds one, unless it was added lately.
pub(crate) fn add(all: &mut Vec<Arc<Attachment>>, attachment: &Arc<Attachment>) {
    let mut last = all.iter().rev().take(LOOKED_AT);
    if !last.any(|known| Arc::ptr_eq(known, attachment)) {
        all.push(Arc::clone(attachment));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Over which a worker is handed the memory of long attachments.
#[derive(Debug)]
pub(crate) struct Handover(OwnedFd);

/// The two ends: ours, and the worker's.
pub(crate) fn handover() -> io::Result<(Handover, OwnedFd)> {
    let (ours, theirs) = greeting::socket()?;
    // What a task may write there goes nowhere, and holds nobody up.
    shutdown(&ours, Shutdown::Read).map_err(|error| no("socket for a worker")(error.into()))?;
    Ok((Handover(ours), theirs))
}

impl Handover {
    /// Hands the memory of an attachment over; false if there is no room for that yet.
    pub(crate) fn give(&self, id: u64, memory: BorrowedFd<'_>) -> io::Result<bool> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [memory];
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            let sent = sendmsg(
                &self.0,
                &[IoSlice::new(&id.to_ne_bytes())],
                &mut ancillary,
                flags,
            );
            match sent {
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM) => {
                    return Ok(false);
                }
                // It is dead, or a task has closed its end: then it ends itself when it finds that nothing came.
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

// ---- the worker's side ----------------------------------------------------------------------------

/// The worker's end of a [`Handover`].
pub(crate) struct Receiver(Own);

impl Receiver {
    pub(crate) fn new(socket: OwnedFd) -> Receiver {
        Receiver(Own::new(socket))
    }

    /// Maps an attachment of so many bytes, whose memory was handed over.
    ///
    /// # Errors
    ///
    /// If there is no room for it.
    pub(crate) fn map(&self, id: u64, len: u64) -> Result<Attached, String> {
        let Some(memory) = self.take(id) else {
            // A task has closed the socket, or read from it. What was not begun is run elsewhere.
            process::abort()
        };
        let attached = Attached::long(&memory, len as usize);
        attached.map_err(|error| no("room for what inputs have in common")(error).to_string())
    }

    /// The memory that was announced, if it was handed over. What comes before it was not needed after all.
    fn take(&self, id: u64) -> Option<OwnedFd> {
        loop {
            let mut said = [0; size_of::<u64>()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                self.0.get()?,
                &mut [IoSliceMut::new(&mut said)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
            );
            match received {
                Ok(received) if received.bytes == said.len() => {}
                Err(Errno::INTR) => continue,
                _ => return None,
            }
            let fds = ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            if u64::from_ne_bytes(said) == id {
                return fds;
            }
        }
    }
}

type Kept = BTreeMap<u64, Result<Rc<Attached>, String>>;

thread_local! {
    /// What this worker has; or why it could not be had. Not dropped when the worker ends, for what was decoded is the
    /// user's.
    static ATTACHED: ManuallyDrop<RefCell<Kept>> =
        const { ManuallyDrop::new(RefCell::new(BTreeMap::new())) };
}

/// Keeps what came.
pub(crate) fn keep(id: u64, attached: Result<Attached, String>) {
    ATTACHED.with(|all| all.borrow_mut().insert(id, attached.map(Rc::new)));
}

/// Nobody needs it any more. What was decoded of it is the user's, and is dropped with what this gives.
pub(crate) fn forget(id: u64) -> Option<Rc<Attached>> {
    ATTACHED.with(|all| all.borrow_mut().remove(&id))?.ok()
}

/// What was kept.
pub(crate) fn find(id: u64) -> Result<Rc<Attached>, String> {
    let found = ATTACHED.with(|all| all.borrow().get(&id).cloned());
    found.unwrap_or_else(|| Err("what it refers to did not come with it".to_owned()))
}

/// Runs something in this process that has these, and what they hold, and nothing else.
pub(crate) fn within<'a, R>(
    attachments: impl Iterator<Item = &'a Arc<Attachment>>,
    run: impl FnOnce() -> R,
) -> R {
    let mut all = BTreeMap::new();
    attachments.for_each(|one| open_all(one, &mut all));
    let restore = Restore(ATTACHED.with(|kept| kept.replace(all)));
    let result = run();
    drop(restore);
    result
}

fn open_all(one: &Attachment, all: &mut Kept) {
    if let Entry::Vacant(vacant) = all.entry(one.id) {
        let bytes = one.bytes().map(|bytes| {
            Rc::new(Attached {
                channel: one.channel().cloned(),
                ..Attached::of(bytes)
            })
        });
        vacant.insert(bytes.map_err(|error| error.to_string()));
        one.holds.iter().for_each(|other| open_all(other, all));
    }
}

/// Puts back what there was.
struct Restore(Kept);

impl Drop for Restore {
    fn drop(&mut self) {
        let within = ATTACHED.with(|kept| kept.replace(mem::take(&mut self.0)));
        // It is the user's, and may ask for others.
        drop(within);
    }
}

/// What a worker has got.
pub(crate) struct Attached {
    bytes: Arc<Bytes>,
    /// What was decoded of it: by how many bytes there were from there to the end.
    decoded: RefCell<Vec<Decoded>>,
    /// The whole of it as a value of this type.
    shared: RefCell<Vec<(TypeId, Arc<Held>)>>,
    /// The channel that it stands for, if that is in this process.
    channel: Option<Arc<Channel>>,
    /// The place of that channel, if this process is a worker.
    place: Option<u8>,
}

struct Decoded {
    at: usize,
    value: Rc<dyn Any>,
    /// How many bytes there were behind it.
    rest: usize,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Attached").field(&self.bytes.len()).finish()
    }
}

impl Attached {
    pub(crate) fn short(bytes: &[u8]) -> Attached {
        Attached::of(Arc::new(Bytes::short(bytes)))
    }

    /// Maps what came as a descriptor.
    ///
    /// # Errors
    ///
    /// If it is not what was announced, or there is no room for it.
    pub(crate) fn long(fd: &OwnedFd, len: usize) -> io::Result<Attached> {
        let memory = Constant::open(fd, len)?;
        Ok(Attached::of(Arc::new(Bytes::Long(memory))))
    }

    fn of(bytes: Arc<Bytes>) -> Attached {
        Attached {
            bytes,
            decoded: RefCell::default(),
            shared: RefCell::default(),
            channel: None,
            place: None,
        }
    }

    /// A channel with this place.
    pub(crate) fn of_channel(place: u8) -> Attached {
        Attached {
            place: Some(place),
            ..Attached::short(&[])
        }
    }

    pub(crate) fn place(&self) -> Option<u8> {
        self.place
    }

    pub(crate) fn channel(&self) -> Option<&Arc<Channel>> {
        self.channel.as_ref()
    }

    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The whole of it as a `T`; made, if it was not before.
    pub(crate) fn share<T: ?Sized + 'static>(
        &self,
        make: impl FnOnce(Arc<Bytes>) -> Result<Held, String>,
    ) -> Result<Arc<Held>, String> {
        let key = TypeId::of::<T>();
        let found = self
            .shared
            .borrow()
            .iter()
            .find_map(|(known, held)| (*known == key).then(|| Arc::clone(held)));
        match found {
            Some(found) => Ok(found),
            None => {
                let held = Arc::new(make(Arc::clone(&self.bytes))?);
                self.shared.borrow_mut().push((key, Arc::clone(&held)));
                Ok(held)
            }
        }
    }

    /// The value at the front of `from`, which reaches to the end; decoded, if it was not before. Gives what is behind it,
    /// too.
    pub(crate) fn keep<'a, T: 'static>(
        &self,
        from: &'a [u8],
        decode: impl FnOnce() -> Result<(T, usize), CodecError>,
    ) -> Result<(Rc<T>, &'a [u8]), CodecError> {
        let found = self.decoded.borrow().iter().find_map(|decoded| {
            let value = Rc::clone(&decoded.value).downcast().ok()?;
            (decoded.at == from.len()).then_some((value, decoded.rest))
        });
        let (value, rest) = match found {
            Some(found) => found,
            None => {
                let (value, rest) = decode()?;
                let value = Rc::new(value);
                self.decoded.borrow_mut().push(Decoded {
                    at: from.len(),
                    value: Rc::clone(&value) as Rc<dyn Any>,
                    rest,
                });
                (value, rest)
            }
        };
        Ok((value, &from[from.len() - rest..]))
    }
}
