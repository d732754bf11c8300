//! [`ByRef`]: a call whose arguments are passed by reference.

use std::fmt;
use std::time::Duration;

use pool_worker::Task;
use pool_worker::param::{BindsLent, Lends, LendsAll};

use crate::call::Call;
use crate::error::Error;
use crate::handle::AsyncResult;
use crate::iter::{Imap, ImapUnordered};
use crate::open::{self, Left, Open, UnaryByRef};
use crate::progress::Progress;
use crate::retries::Retries;

/// A call that takes references: `pool.task(count).by_ref().map(&texts)`.
///
/// Made by [`Call::by_ref`]. It has all methods of a [`Call`]. Nothing is cloned: each value is encoded where it is, before
/// the method returns (an [`Imap`] keeps the iterator, and with it whatever that borrows).
///
/// | parameter of the task | what to pass |
/// |---|---|
/// | `T`, `&T` | a `&T` |
/// | `&str`, `String`, `&String` | a reference to anything that borrows a `str`: `&str`, `&String`, `&Box<str>` |
/// | `&[T]`, `Vec<T>`, `&Vec<T>` | a reference to anything that borrows a `[T]`: `&[T]`, `&Vec<T>`, `&[T; 3]` |
/// | `&Path`, `&OsStr`, `&CStr` | a reference to anything that borrows it: `&Path`, `&PathBuf` |
///
/// Pass several arguments as a tuple of references, or as a reference to a tuple.
///
/// # Examples
///
/// ```
/// use pool_core::{Error, Pool, pool_task};
///
/// #[pool_task]
/// fn count(text: &str, of: char) -> usize { text.matches(of).count() }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::with_processes(2)?;
/// let texts = vec!["banana".to_owned(), "apple".to_owned()];
/// let call = pool.task(count).by_ref();
/// assert_eq!(call.apply((&texts[0], &'a'))?, 3);
/// let inputs = texts.iter().map(|text| (text, &'a'));
/// assert_eq!(call.starmap(inputs)?, [3, 1]);
/// # Ok(())
/// # }
/// ```
#[must_use = "a call does nothing until one of its methods runs it"]
pub struct ByRef<'p, T, O = T>(Call<'p, T, O>);

impl<T, O> Clone for ByRef<'_, T, O> {
    fn clone(&self) -> Self {
        ByRef(self.0.clone())
    }
}

impl<T: Task, O> fmt::Debug for ByRef<'_, T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ByRef").field(&self.0).finish()
    }
}

impl<'p, T: Task, O: Open<T>> ByRef<'p, T, O> {
    pub(crate) fn new(call: Call<'p, T, O>) -> Self {
        ByRef(call)
    }

    /// See [`Call::chunksize`].
    pub fn chunksize(self, size: usize) -> Self {
        ByRef(self.0.chunksize(size))
    }

    /// See [`Call::time_limit`].
    pub fn time_limit(self, limit: Duration) -> Self {
        ByRef(self.0.time_limit(limit))
    }

    /// See [`Call::priority`].
    pub fn priority(self, priority: i32) -> Self {
        ByRef(self.0.priority(priority))
    }

    /// See [`Call::retries`].
    pub fn retries(self, retries: impl Into<Retries>) -> Self {
        ByRef(self.0.retries(retries))
    }

    /// See [`Call::progress`].
    pub fn progress(self, handler: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        ByRef(self.0.progress(handler))
    }

    /// Like [`Call::partial`], with references to the bound arguments.
    pub fn partial<B>(self, arguments: B) -> ByRef<'p, T, Left<T, B::Args, B::Params>>
    where
        B: BindsLent<O::Args, O::Params>,
    {
        ByRef(self.0.bind(|out| arguments.encode(out)))
    }

    /// The same call with values again: large data is bound by reference, and the inputs are passed by value.
    ///
    /// ```
    /// use pool_core::{Error, Pool, pool_task};
    ///
    /// #[pool_task]
    /// fn entry(table: &[f64], at: usize) -> f64 { table[at] }
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::with_processes(2)?;
    /// let table = vec![0.0, 0.5, 1.0];
    /// let call = pool.task(entry).by_ref().partial((&table,)).by_value();
    /// assert_eq!(call.map(0..3)?, table);
    /// # Ok(())
    /// # }
    /// ```
    pub fn by_value(self) -> Call<'p, T, O> {
        self.0
    }

    /// Like [`Call::apply`], with references.
    ///
    /// # Errors
    ///
    /// As [`Call::apply`].
    pub fn apply<S>(&self, args: S) -> Result<T::Output, Error>
    where
        S: LendsAll<O::Params>,
    {
        self.0.apply_encoded(|out| open::lend_all(args, out))
    }

    /// Like [`Call::apply_async`], with references.
    pub fn apply_async<S>(&self, args: S) -> AsyncResult<T::Output>
    where
        S: LendsAll<O::Params>,
    {
        self.0.apply_async_encoded(|out| open::lend_all(args, out))
    }

    /// Like [`Call::map`], with references.
    ///
    /// # Errors
    ///
    /// As [`Call::map`].
    pub fn map<S, I>(&self, inputs: I) -> Result<Vec<T::Output>, Error>
    where
        O: UnaryByRef<T>,
        I: IntoIterator<Item = S>,
        S: Lends<O::Lent>,
    {
        self.0.all(inputs.into_iter(), O::lend_one)
    }

    /// Like [`Call::map_async`], with references.
    pub fn map_async<S, I>(&self, inputs: I) -> AsyncResult<Vec<T::Output>>
    where
        O: UnaryByRef<T>,
        I: IntoIterator<Item = S>,
        S: Lends<O::Lent>,
    {
        self.0.start(inputs.into_iter(), O::lend_one)
    }

    /// Like [`Call::map_results`], with references.
    pub fn map_results<S, I>(&self, inputs: I) -> Vec<Result<T::Output, Error>>
    where
        O: UnaryByRef<T>,
        I: IntoIterator<Item = S>,
        S: Lends<O::Lent>,
    {
        self.0.each(inputs.into_iter(), O::lend_one)
    }

    /// Like [`Call::map_results_async`], with references.
    pub fn map_results_async<S, I>(&self, inputs: I) -> AsyncResult<Vec<Result<T::Output, Error>>>
    where
        O: UnaryByRef<T>,
        I: IntoIterator<Item = S>,
        S: Lends<O::Lent>,
    {
        self.0.start_each(inputs.into_iter(), O::lend_one)
    }

    /// Like [`Call::imap`], with references.
    pub fn imap<S, I>(&self, inputs: I) -> Imap<T, I::IntoIter>
    where
        O: UnaryByRef<T>,
        I: IntoIterator<Item = S>,
        S: Lends<O::Lent>,
    {
        self.0.lazy(inputs.into_iter(), O::lend_one)
    }

    /// Like [`Call::imap_unordered`], with references.
    pub fn imap_unordered<S, I>(&self, inputs: I) -> ImapUnordered<T, I::IntoIter>
    where
        O: UnaryByRef<T>,
        I: IntoIterator<Item = S>,
        S: Lends<O::Lent>,
    {
        self.0.lazy_unordered(inputs.into_iter(), O::lend_one)
    }

    /// Like [`Call::starmap`], with references.
    ///
    /// # Errors
    ///
    /// As [`Call::starmap`].
    pub fn starmap<S, I>(&self, inputs: I) -> Result<Vec<T::Output>, Error>
    where
        I: IntoIterator<Item = S>,
        S: LendsAll<O::Params>,
    {
        self.0.all(inputs.into_iter(), open::lend_all)
    }

    /// Like [`Call::starmap_async`], with references.
    pub fn starmap_async<S, I>(&self, inputs: I) -> AsyncResult<Vec<T::Output>>
    where
        I: IntoIterator<Item = S>,
        S: LendsAll<O::Params>,
    {
        self.0.start(inputs.into_iter(), open::lend_all)
    }

    /// Like [`Call::starmap_results`], with references.
    pub fn starmap_results<S, I>(&self, inputs: I) -> Vec<Result<T::Output, Error>>
    where
        I: IntoIterator<Item = S>,
        S: LendsAll<O::Params>,
    {
        self.0.each(inputs.into_iter(), open::lend_all)
    }

    /// Like [`Call::starmap_results_async`], with references.
    pub fn starmap_results_async<S, I>(
        &self,
        inputs: I,
    ) -> AsyncResult<Vec<Result<T::Output, Error>>>
    where
        I: IntoIterator<Item = S>,
        S: LendsAll<O::Params>,
    {
        self.0.start_each(inputs.into_iter(), open::lend_all)
    }

    /// Like [`Call::istarmap`], with references.
    pub fn istarmap<S, I>(&self, inputs: I) -> Imap<T, I::IntoIter>
    where
        I: IntoIterator<Item = S>,
        S: LendsAll<O::Params>,
    {
        self.0.lazy(inputs.into_iter(), open::lend_all)
    }

    /// Like [`Call::istarmap_unordered`], with references.
    pub fn istarmap_unordered<S, I>(&self, inputs: I) -> ImapUnordered<T, I::IntoIter>
    where
        I: IntoIterator<Item = S>,
        S: LendsAll<O::Params>,
    {
        self.0.lazy_unordered(inputs.into_iter(), open::lend_all)
    }
}
