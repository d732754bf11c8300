//! The tasks of this binary, each registered before `main` by `#[pool_task]`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

use crate::codec::CodecError;

/// The function that `#[pool_task]` emits for the worker: decode, call, encode.
pub type Run = fn(&[u8], &mut Vec<u8>) -> Result<(), RunError>;

/// Why a task gave no result, other than by a panic.
#[derive(Debug, Clone)]
pub enum RunError {
    /// The arguments could not be decoded.
    Decode(CodecError),
    /// The result could not be encoded.
    Encode(CodecError),
}

/// One task of this binary.
#[derive(Debug)]
pub struct Registration {
    name: &'static str,
    id: &'static str,
    run: Run,
}

impl Registration {
    /// What `#[pool_task]` hands to `inventory::submit!`.
    pub const fn new(name: &'static str, id: &'static str, run: Run) -> Self {
        Registration { name, id, run }
    }

    /// The name that errors show.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs the function on encoded arguments and appends the encoded result.
    pub(crate) fn run(&self, args: &[u8], out: &mut Vec<u8>) -> Result<(), RunError> {
        (self.run)(args, out)
    }
}

inventory::collect!(Registration);

/// What a look-up by id may find.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found {
    Task(&'static Registration),
    Nothing,
    /// Two functions bear the same id: one `macro_rules!` invocation can emit two of one name.
    Several,
}

/// Finds a task by its id.
pub(crate) fn find(id: &str) -> Found {
    match registry().by_id.get(id) {
        Some(Some(task)) => Found::Task(task),
        Some(None) => Found::Several,
        None => Found::Nothing,
    }
}

/// A number that two processes share if they know the same tasks.
pub(crate) fn fingerprint() -> u64 {
    registry().fingerprint
}

struct Registry {
    by_id: HashMap<&'static str, Option<&'static Registration>>,
    fingerprint: u64,
}

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let mut by_id = HashMap::new();
        let mut ids = Vec::new();
        for task in inventory::iter::<Registration> {
            ids.push(task.id);
            match by_id.entry(task.id) {
                Entry::Vacant(entry) => {
                    entry.insert(Some(task));
                }
                Entry::Occupied(mut entry) => {
                    entry.insert(None);
                }
            }
        }
        ids.sort_unstable();
        let mut hasher = DefaultHasher::new();
        ids.hash(&mut hasher);
        Registry {
            by_id,
            fingerprint: hasher.finish(),
        }
    })
}
