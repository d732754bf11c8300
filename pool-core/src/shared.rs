//! [`Shared`]: a large value that many tasks read.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use pool_worker::shared::{Held, InPlace, Share, ShareError};
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::error::{Codec, Error, Place, Side, Verb};

/// A large value that many tasks read: in shared memory once, and passed to tasks for the price of a number.
///
/// A handle: clones are cheap, and all show the same value. It is given to tasks like any other argument: by itself, in
/// tuples, structs and vectors, [bound](crate::Call::partial), or to an
/// [initializer](crate::PoolBuilder::initializer). A task takes a `Shared<T>` (or a `&Shared<T>`), and reads it as a `T`.
///
/// | made by | the value | in each worker |
/// |---|---|---|
/// | [`Shared::copy_from`] | `[f64]` and other numbers, `[u8]`, `str` | read in place: no copy at all |
/// | [`Shared::new`] | anything that serde takes | decoded once, and kept while it is held |
///
/// [The guide](crate::guide) says when something else is better: an argument that is [bound](crate::Call::partial) for one
/// call, or what was [preloaded](crate::PoolBuilder::preload).
///
/// # Memory
///
/// The value is held by its handles in this process, and by the work that was given one, until that has its outcome. When
/// both are gone, the memory is given back, also in the workers. (A task may keep a handle in a `static`, and with it the
/// memory.) A worker that starts later gets what its tasks need, also if it takes over from one that died.
///
/// Workers map the memory for reading only: a task that writes to it by force dies, and no other is harmed. It has no name, so
/// nothing is left behind. A value of more than 32 KiB takes one descriptor of this process.
///
/// # Serializing
///
/// What travels is a number that means something to the workers of this process only, so serializing a `Shared`
/// for something else (a file, the result of a task) is an error that says so. In a generic struct of yours, derive with
/// `#[serde(bound = "")]`.
///
/// # Examples
///
/// ```
/// use pool_core::{Error, Pool, Shared, pool_task};
///
/// #[pool_task]
/// fn nearest(points: Shared<[f64]>, to: f64) -> usize {
///     let far = |at: &usize| (points[*at] - to).abs();
///     (0..points.len()).min_by(|a, b| far(a).total_cmp(&far(b))).unwrap_or(0)
/// }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::with_processes(2)?;
/// let points = Shared::copy_from(&[0.0, 10.0, 20.0][..])?;
/// let found = pool.starmap(nearest, [1.0, 19.0].map(|to| (points.clone(), to)))?;
/// assert_eq!(found, [0, 2]);
/// // The same, with the handle given once.
/// assert_eq!(pool.task(nearest).partial((points,)).map([9.0])?, [1]);
/// # Ok(())
/// # }
/// ```
pub struct Shared<T: ?Sized> {
    held: Arc<Held>,
    value: PhantomData<fn() -> Box<T>>,
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Shared<T> {
    /// Shares a value that each worker decodes once. This process keeps the value itself, too.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] if it can't be encoded, or there is no memory for it.
    pub fn new(value: T) -> Result<Shared<T>, Error> {
        Shared::of(Held::value(value))
    }
}

impl<T: ?Sized> Shared<T> {
    /// Shares a copy of numbers, bytes or text, which everybody reads in place: `Shared::copy_from(&vec[..])`, or
    /// `Shared::<[u8]>::copy_from(b"abc")` of an array.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] if there is no memory for it.
    pub fn copy_from(value: &T) -> Result<Shared<T>, Error>
    where
        T: InPlace,
    {
        Shared::of(Held::copy(value))
    }

    fn of(held: Result<Held, ShareError>) -> Result<Shared<T>, Error> {
        let held = held.map_err(|ShareError(why)| {
            Error::Encode(Codec {
                place: Place {
                    task: "Shared".into(),
                    index: None,
                },
                verb: Verb::Encode,
                what: Side::Shared,
                why,
            })
        })?;
        Ok(Shared {
            held: Arc::new(held),
            value: PhantomData,
        })
    }
}

impl<T: Share + ?Sized> Deref for Shared<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        T::of(&self.held)
    }
}

impl<T: ?Sized> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Shared {
            held: Arc::clone(&self.held),
            value: PhantomData,
        }
    }
}

impl<T: Share + fmt::Debug + ?Sized> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.held.serialize(to)
    }
}

impl<'de, T: Share + ?Sized> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Shared {
            held: Held::deserialize::<T, D>(from)?,
            value: PhantomData,
        })
    }
}
