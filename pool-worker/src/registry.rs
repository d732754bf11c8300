//! The tasks of this binary, each registered before `main` by `#[pool_task]`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::buffer::Buffer;
use crate::codec::{CodecError, Input};

/// The function that `#[pool_task]` emits for the worker: decode, call, encode. The result is appended; or given back, if
/// it is a long block. If the last argument is true, the task is run for its effect: nothing is encoded, and a result that is
/// an error is one.
pub type Run = fn(Input<'_>, &mut Vec<u8>, bool) -> Result<Option<Buffer>, RunError>;

/// Why a task gave no result, other than by a panic.
#[derive(Debug, Clone)]
pub enum RunError {
    /// The arguments could not be decoded.
    Decode(CodecError),
    /// The result could not be encoded.
    Encode(CodecError),
    /// The task returned an error, with this text, where it was run for its effect.
    Returned(String),
}

impl RunError {
    /// What follows from what a task [tells](crate::Tell) that was run for its effect.
    pub fn returned(error: Option<String>) -> Result<Option<Buffer>, RunError> {
        error.map_or(Ok(None), |error| Err(RunError::Returned(error)))
    }
}

/// One task of this binary.
#[derive(Debug)]
pub struct Registration {
    name: &'static str,
    id: &'static str,
    run: Run,
    number: &'static Number,
}

/// The number of a task: its place among all tasks of this binary, by their ids. Two processes that run
/// the same program give a task the same number.
#[derive(Debug)]
pub struct Number(AtomicU32);

impl Number {
    /// One that is not known yet.
    #[expect(
        clippy::new_without_default,
        reason = "made by `#[pool_task]`, in a constant"
    )]
    pub const fn new() -> Self {
        Number(AtomicU32::new(u32::MAX))
    }

    /// The number.
    #[inline]
    pub fn get(&self) -> u32 {
        let number = self.0.load(Ordering::Relaxed);
        if number == u32::MAX {
            registry();
            return self.0.load(Ordering::Relaxed);
        }
        number
    }
}

impl Registration {
    /// What `#[pool_task]` hands to `inventory::submit!`.
    pub const fn new(
        name: &'static str,
        id: &'static str,
        run: Run,
        number: &'static Number,
    ) -> Self {
        Registration {
            name,
            id,
            run,
            number,
        }
    }

    /// The name that errors show.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs the function on encoded arguments.
    pub(crate) fn run(
        &self,
        args: Input<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Buffer>, RunError> {
        (self.run)(args, out, false)
    }

    /// The same for its effect.
    pub(crate) fn run_for_effect(&self, args: Input<'_>) -> Result<(), RunError> {
        (self.run)(args, &mut Vec::new(), true).map(drop)
    }
}

inventory::collect!(Registration);

/// What a look-up by number may find.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found {
    Task(&'static Registration),
    Nothing,
    /// Two functions bear this id: one `macro_rules!` invocation can emit two of one name.
    Several(&'static str),
}

/// Finds a task by its number.
pub(crate) fn find(number: u32) -> Found {
    let found = registry().by_number.get(number as usize);
    found.copied().unwrap_or(Found::Nothing)
}

/// A number that two processes share if they know the same tasks.
pub fn fingerprint() -> u64 {
    registry().fingerprint
}

/// What tells the tasks of this program apart, in the order of their numbers: the name, and the place in the source.
pub fn tasks() -> impl ExactSizeIterator<Item = &'static str> {
    registry().by_number.iter().map(|found| match found {
        Found::Task(task) => task.id,
        Found::Several(id) => id,
        Found::Nothing => "",
    })
}

/// The name of the task of this number, as errors show it.
pub fn task_name(number: u32) -> Option<&'static str> {
    match find(number) {
        Found::Task(task) => Some(task.name),
        Found::Several(id) => Some(id),
        Found::Nothing => None,
    }
}

struct Registry {
    by_number: Vec<Found>,
    fingerprint: u64,
}

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let mut tasks: Vec<&'static Registration> =
            inventory::iter::<Registration>.into_iter().collect();
        tasks.sort_unstable_by_key(|task| task.id);
        let mut hasher = DefaultHasher::new();
        let mut by_number = Vec::new();
        for same in tasks.chunk_by(|one, other| one.id == other.id) {
            same[0].id.hash(&mut hasher);
            for task in same {
                task.number
                    .0
                    .store(by_number.len() as u32, Ordering::Relaxed);
            }
            by_number.push(match same {
                [task] => Found::Task(task),
                _ => Found::Several(same[0].id),
            });
        }
        Registry {
            by_number,
            fingerprint: hasher.finish(),
        }
    })
}
