//! Attachments: bytes that many inputs refer to and that a worker gets only once, such as the arguments bound by
//! `partial` and [shared](crate::shared) values.
//!
//! In the parent they are an [`Attachment`], which every portion that needs it holds. Before a worker is sent such a portion,
//! it is sent the attachment, if it does not have it yet: a short one through the ring of requests, a long one as the
//! descriptor of shared memory, which all workers map. The worker keeps it as an [`Attached`] until the parent says that the
//! attachment is no longer needed. To this end, an attachment remembers which workers it was sent to: see [`Freed`].

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

/// Attachments of more bytes than this are in shared memory.
const SHORT_MAX: usize = FRAME_MAX;

// ---- the parent's side ----------------------------------------------------------------------------

/// Bytes that several inputs refer to.
pub struct Attachment {
    id: u64,
    content: Option<Content>,
    /// The attachments that the bytes refer to.
    holds: Vec<Arc<Attachment>>,
    /// Those that must be told when it is dropped.
    holders: Mutex<Vec<Holder>>,
}

/// A process, or processes, with copies of an attachment.
enum Holder {
    /// Workers on this machine.
    Workers(Weak<Freed>),
    /// A function to call with the id.
    Other(Box<dyn FnOnce(u64) + Send>),
}

enum Content {
    Short(Arc<Bytes>),
    Long(OwnedFd, usize),
    /// No bytes: it lets a worker send messages into the channel.
    Channel(Arc<Channel>),
}

/// The part of an attachment that a worker is sent.
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
    /// Creates an attachment with these bytes, which refer to the attachments in `holds`.
    ///
    /// # Errors
    ///
    /// If no shared memory is available for the bytes.
    pub fn new(bytes: &[u8], holds: Vec<Arc<Attachment>>) -> io::Result<Arc<Attachment>> {
        Attachment::of(&[bytes], holds)
    }

    /// The same, with bytes in several parts.
    ///
    /// # Errors
    ///
    /// As [`new`](Attachment::new).
    pub fn of(parts: &[&[u8]], holds: Vec<Arc<Attachment>>) -> io::Result<Arc<Attachment>> {
        Attachment::with_id(next_id(), parts, holds)
    }

    /// An attachment that lets workers send messages into this channel.
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

    /// Creates an attachment under an id given by another process that runs this program. All attachments sent to the
    /// workers of one pool must have ids from the same process.
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
            let memory = memory.map_err(no("shared memory for the data that tasks share"))?;
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
    /// If the memory that holds them can't be mapped.
    pub fn bytes(&self) -> io::Result<Arc<Bytes>> {
        match &self.content {
            Some(Content::Short(bytes)) => Ok(Arc::clone(bytes)),
            Some(Content::Long(memory, len)) => {
                let mapped = Constant::open(memory, *len);
                let mapped = mapped.map_err(no("room for the data that tasks share"))?;
                Ok(Arc::new(Bytes::Long(mapped)))
            }
            Some(Content::Channel(_)) | None => Ok(Arc::new(Bytes::short(&[]))),
        }
    }

    /// The attachments that the bytes refer to.
    pub fn holds(&self) -> &[Arc<Attachment>] {
        &self.holds
    }

    /// Whether this is the attachment of a channel, or refers to one that is.
    pub fn has_channel(&self) -> bool {
        self.channel().is_some() || self.holds.iter().any(|other| other.has_channel())
    }

    /// A number that no other attachment of this process has.
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

    /// Notes that this is sent to workers of the pool that has `freed`.
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

    /// Calls `tell` with the id when this is dropped. That may happen in any thread, while it holds any lock of a pool, so
    /// `tell` should only note the id and wake a thread.
    pub fn on_drop(&self, tell: impl FnOnce(u64) + Send + 'static) {
        lock(&self.holders).push(Holder::Other(Box::new(tell)));
    }
}

/// An id for a new attachment.
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

/// The attachments that the workers of a pool still have, but that have no holder in the parent.
///
/// An attachment is dropped by its last holder, which may be a thread that has the pool's lock. So the drop only notes
/// it here, and the pool collects what was noted and tells the workers.
#[derive(Debug)]
pub struct Freed {
    /// `None` once all workers have ended.
    noted: Mutex<Option<Vec<Noted>>>,
    /// Wakes the thread that calls [`take`](Freed::take).
    waker: Waker,
}

/// An attachment that has no holder.
///
/// It takes time to return long ones to the system, so their memory is dropped with this, not with the attachment.
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

    /// Whether it is worth waking a worker to make it drop its copy.
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
    /// An empty list. `waker` wakes the thread that calls [`take`](Freed::take).
    pub fn new(waker: Waker) -> Arc<Freed> {
        Arc::new(Freed {
            noted: Mutex::new(Some(Vec::new())),
            waker,
        })
    }

    /// Notes an attachment and takes its content, or returns the content if the list is closed.
    fn note(&self, noted: Noted) -> Option<Content> {
        let is_long = noted.is_long;
        match &mut *lock(&self.noted) {
            Some(all) => all.push(noted),
            None => return noted.content,
        }
        // Freeing a short one is not worth waking a thread.
        if is_long {
            self.waker.wake();
        }
        None
    }

    /// Takes the attachments that were freed since the last call.
    pub fn take(&self) -> Vec<Noted> {
        lock(&self.noted).as_mut().map_or_else(Vec::new, mem::take)
    }

    /// Takes those that were freed since the last call, and ignores later ones: all workers have ended.
    pub fn close(&self) -> Vec<Noted> {
        lock(&self.noted).take().unwrap_or_default()
    }
}

/// Immutable bytes, aligned for any type of number.
pub enum Bytes {
    /// Words that contain the bytes, and the number of bytes.
    Short(Box<[u128]>, usize),
    /// Mapped memory.
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

// ---- collecting attachments while encoding --------------------------------------------------------

thread_local! {
    /// Whether this thread is encoding data for a worker, whether it has collected an attachment, and the id of one
    /// that was collected before and can be skipped. All in one number, since each input changes it.
    static COLLECTING: Cell<u64> = const { Cell::new(0) };
    static COLLECTED: RefCell<Vec<Arc<Attachment>>> = const { RefCell::new(Vec::new()) };
    /// The attachments of outer collections, while a nested one runs.
    static OUTER: RefCell<Vec<Vec<Arc<Attachment>>>> = const { RefCell::new(Vec::new()) };
    /// The attachments of a finished collection, until they are taken.
    static TAKEN: RefCell<Vec<Arc<Attachment>>> = const { RefCell::new(Vec::new()) };
}

const IS_ON: u64 = 1 << 63;
const ANY: u64 = 1 << 62;
const KNOWN: u64 = ANY - 1;

/// Collects the attachments that data for a worker refers to, while that data is encoded.
pub(crate) struct Collection {
    before: u64,
}

impl Collection {
    /// Starts collecting, except for the attachment with the id `known`.
    #[inline]
    pub(crate) fn begin(known: u64) -> Collection {
        let before = COLLECTING.replace(IS_ON | known);
        // Encoding a value may call another pool, and so encode another value.
        if before & ANY != 0 {
            set_aside();
        }
        Collection { before }
    }

    /// Returns whether there may be something to [`take`].
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

/// Runs if encoding panics.
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

/// Calls `encode`, and returns its result and the attachments that the encoded data refers to.
pub fn collect<R>(encode: impl FnOnce() -> R) -> (R, Vec<Arc<Attachment>>) {
    let collection = Collection::begin(0);
    let result = encode();
    collection.end();
    (result, take())
}

/// Takes the attachments of the collection that has just ended.
#[cold]
pub(crate) fn take() -> Vec<Arc<Attachment>> {
    TAKEN.take()
}

/// Notes that the data being encoded refers to this attachment. The data must be for a worker.
#[inline]
pub(crate) fn refer_to(attachment: &Arc<Attachment>) {
    let collecting = COLLECTING.get();
    if collecting & KNOWN != attachment.id {
        COLLECTING.set(collecting | ANY);
        COLLECTED.with_borrow_mut(|all| add(all, attachment));
    }
}

/// Whether this thread is encoding data for a worker.
#[inline]
pub(crate) fn is_collecting() -> bool {
    COLLECTING.get() & IS_ON != 0
}

/// How many of the last attachments are compared with a new one to avoid duplicates.
const LOOKED_AT: usize = 8;

/// Adds an attachment, unless it was added recently.
pub(crate) fn add(all: &mut Vec<Arc<Attachment>>, attachment: &Arc<Attachment>) {
    let mut last = all.iter().rev().take(LOOKED_AT);
    if !last.any(|known| Arc::ptr_eq(known, attachment)) {
        all.push(Arc::clone(attachment));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The socket over which a worker is handed the memory of long attachments.
#[derive(Debug)]
pub(crate) struct Handover(OwnedFd);

/// Creates both ends: the parent's and the worker's.
pub(crate) fn handover() -> io::Result<(Handover, OwnedFd)> {
    let (ours, theirs) = greeting::socket()?;
    // Anything that a task writes to it is discarded, and blocks nothing.
    shutdown(&ours, Shutdown::Read).map_err(|error| no("socket for a worker")(error.into()))?;
    Ok((Handover(ours), theirs))
}

impl Handover {
    /// Hands over the memory of an attachment. Returns false if the socket is full for now.
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
                // The worker is dead, or a task has closed the socket. In that case the worker aborts when it finds
                // nothing to receive.
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

    /// Maps an attachment of `len` bytes, whose memory was handed over.
    ///
    /// # Errors
    ///
    /// If it can't be mapped.
    pub(crate) fn map(&self, id: u64, len: u64) -> Result<Attached, String> {
        let Some(memory) = self.take(id) else {
            // A task has closed the socket, or read from it. Inputs that have not begun will run in another worker.
            process::abort()
        };
        let attached = Attached::long(&memory, len as usize);
        attached.map_err(|error| no("room for the data that inputs share")(error).to_string())
    }

    /// Receives the memory that was announced, if it was handed over. Memory that comes before it is not needed any
    /// more.
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
    /// The attachments that this worker has, or why one could not be mapped. They are not dropped when the worker
    /// exits, because that would run the user's destructors.
    static ATTACHED: ManuallyDrop<RefCell<Kept>> =
        const { ManuallyDrop::new(RefCell::new(BTreeMap::new())) };
}

/// Keeps an attachment that has arrived.
pub(crate) fn keep(id: u64, attached: Result<Attached, String>) {
    ATTACHED.with(|all| all.borrow_mut().insert(id, attached.map(Rc::new)));
}

/// Removes an attachment that is no longer needed. Dropping the returned value runs the destructors of values decoded from
/// it, which are the user's code.
pub(crate) fn forget(id: u64) -> Option<Rc<Attached>> {
    ATTACHED.with(|all| all.borrow_mut().remove(&id))?.ok()
}

/// Finds an attachment that was kept.
pub(crate) fn find(id: u64) -> Result<Rc<Attached>, String> {
    let found = ATTACHED.with(|all| all.borrow().get(&id).cloned());
    found
        .unwrap_or_else(|| Err("the shared data that it refers to was not sent with it".to_owned()))
}

/// Calls `run` in this process, where it finds only these attachments and those that they hold.
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

/// Puts back the attachments from before [`within`].
struct Restore(Kept);

impl Drop for Restore {
    fn drop(&mut self) {
        let within = ATTACHED.with(|kept| kept.replace(mem::take(&mut self.0)));
        // This runs the user's destructors, which may look for other attachments.
        drop(within);
    }
}

/// An attachment as a worker has it.
pub(crate) struct Attached {
    bytes: Arc<Bytes>,
    /// Values that were decoded from parts of the bytes.
    decoded: RefCell<Vec<Decoded>>,
    /// The whole attachment as a value of this type.
    shared: RefCell<Vec<(TypeId, Arc<Held>)>>,
    /// The channel that it stands for, if that is in this process.
    channel: Option<Arc<Channel>>,
    /// The place of that channel, if this process is a worker.
    place: Option<u8>,
}

struct Decoded {
    /// The number of bytes from the start of the value to the end of the attachment.
    at: usize,
    value: Rc<dyn Any>,
    /// The number of bytes after the value.
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

    /// Maps memory that was received as a descriptor.
    ///
    /// # Errors
    ///
    /// If it is not the memory that was announced, or it can't be mapped.
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

    /// The attachment of the channel with this place.
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

    /// The whole attachment as a `T`, which `make` makes the first time.
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

    /// The value at the start of `from`, and the bytes after it. `from` must reach to the end of the attachment. The
    /// value is decoded the first time only.
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
