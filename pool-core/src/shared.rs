//! [`Shared`]: a large value that many tasks read.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use pool_worker::shared::{Held, InPlace, Share, ShareError};
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::error::{Codec, Error, Place, Side, Verb};

/// A large value that many tasks read. It lies in shared memory once, and passing it to a task costs no more than passing a number.
///
/// This is a handle: clones are cheap, and all refer to the same value. Pass it to tasks like any other argument: by itself, inside
/// tuples, structs and vectors, [bound](crate::Call::partial), or to an
/// [initializer](crate::PoolBuilder::initializer). A task takes a `Shared<T>` (or a `&Shared<T>`), and dereferences it to a `T`.
///
/// | made by | the value | in each worker |
/// |---|---|---|
/// | [`Shared::copy_from`] | `[f64]` and other numbers, `[u8]`, `str` | read in place, without a copy |
/// | [`Shared::new`] | any type that serde can serialize and deserialize | decoded once, and kept while a handle exists |
///
/// [The guide](crate::guide) says when another way is better: an argument that is [bound](crate::Call::partial) for one
/// call, or data that was [preloaded](crate::PoolBuilder::preload).
///
/// # Memory
///
/// The value lives as long as a handle exists in this process, or an input that was given one has no outcome yet. Then the memory
/// is freed, in the workers too. (A task that keeps a handle in a `static` keeps the memory of its worker.) A worker that starts
/// later gets what its tasks need, also when it replaces one that died.
///
/// Workers map the memory read-only: a task that forces a write to it dies, and harms no other. The memory has no name in the file
/// system, so nothing is left behind. A value of more than 32 KiB uses one file descriptor of this process.
///
/// # Serializing
///
/// A `Shared` is sent as a number that only the workers of this process understand, so serializing one for any other purpose (into
/// a file, as the result of a task) is an error. If you derive serde's traits on a generic struct that holds one, add
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
    /// Shares a value that each worker decodes once. This process keeps the value as well.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use pool_core::{Error, Pool, Shared, pool_task};
    ///
    /// #[pool_task]
    /// fn price(prices: Shared<HashMap<String, u32>>, article: &str) -> Option<u32> {
    ///     prices.get(article).copied()
    /// }
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::with_processes(2)?;
    /// let prices = Shared::new(HashMap::from([("tea".to_owned(), 3), ("coffee".to_owned(), 4)]))?;
    /// assert_eq!(prices["tea"], 3);                      // here it is a `HashMap`, too
    /// assert_eq!(pool.apply(price, (prices.clone(), "coffee".to_owned()))?, Some(4));
    /// assert_eq!(pool.apply(price, (prices, "milk".to_owned()))?, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] if it can't be encoded, or there is no memory for it.
    pub fn new(value: T) -> Result<Shared<T>, Error> {
        Shared::of(Held::value(value))
    }
}

impl<T: ?Sized> Shared<T> {
    /// Shares a copy of numbers, bytes or text, which all processes read in place: `Shared::copy_from(&vec[..])`, or
    /// `Shared::<[u8]>::copy_from(b"abc")` for an array.
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
