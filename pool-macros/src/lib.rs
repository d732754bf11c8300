//! The attribute `#[pool_task]`.
//!
//! Users import it as `pool_core::pool_task`; nothing else depends on this crate. The macro emits
//! absolute paths through `pool_core::__private` and knows nothing about how a task is run.
#![forbid(unsafe_code)]
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod attributes;
mod errors;
mod expand;
mod fallback;
mod param;
mod parse;
mod validate;

#[cfg(test)]
mod tests;

use proc_macro::TokenStream;

/// Turns a function into a task, which the workers of a pool can run.
///
/// The attribute registers the function under its name and replaces it with a unit struct of the
/// same name. That struct is what you pass to a pool's methods. You can still call it like the
/// function, and `*square` is a plain `fn`. Name tasks with verbs, because no variable in scope can
/// have the name of a task (`let square = …` would not compile; see below):
///
/// ```
/// use pool_core::pool_task;
///
/// #[pool_task]
/// fn square(x: u64) -> u64 {
///     x * x
/// }
///
/// // `pool.map(square, 0..10)` runs it in the workers, and these run it here.
/// assert_eq!(square(3), 9);
/// assert_eq!([1, 2, 3].map(*square), [1, 4, 9]);
/// ```
///
/// # A function that stays a function
///
/// While a unit struct is in scope, no variable, parameter or module can have its name, and it
/// cannot be called in a constant. (Clippy also warns that a call in a statement of its own, such
/// as `warm_up(3);`, has no effect.) If one of these is a problem, give the struct a different
/// name, and the function stays as it is:
///
/// ```
/// use pool_core::pool_task;
///
/// #[pool_task(handle = Sum)]
/// fn sum(numbers: &[u64]) -> u64 {
///     numbers.iter().sum()
/// }
///
/// // `pool.apply(Sum, (vec![1, 2, 3],))` runs it in a worker.
/// let sum = sum(&[1, 2, 3]);
/// assert_eq!(sum, Sum(&[1, 2, 3]));
/// ```
///
/// # Parameters and results
///
/// Arguments are encoded in the caller and decoded in the worker; results go the other way. So every
/// type must implement serde's `Serialize` and `DeserializeOwned`. A parameter may also be a
/// reference, and then the caller passes the type that owns the data:
///
/// | parameter | the caller passes | how it is sent |
/// |---|---|---|
/// | `T` | `T` | |
/// | `&T` | `T` | |
/// | `&str` | `String` | read in place by the worker |
/// | `&[T]` | `Vec<T>` | |
/// | `&[P]` | `Vec<P>` | as one block, read in place by the worker |
/// | `Vec<P>`, `&Vec<P>`, `Box<[P]>`, `[P; N]` | the same, without the `&` | as one block |
/// | `&Path`, `&OsStr`, `&CStr` | `PathBuf`, `OsString`, `CString` | |
/// | `Shared<T>`, `&Shared<T>` | `Shared<T>` | as a number; the value is in memory that all workers map |
///
/// `P` is a primitive number: `u8`, `i32`, `f64`, `usize` and so on. A block is copied as a whole, not encoded number
/// by number. (A block that is read in place is copied once more if it is not aligned in the worker, which can happen
/// up to 32 KiB.) A result of type `Vec<P>`, `Box<[P]>` or `[P; N]` of any length is a block, too.
///
/// The macro recognizes these types by their spelling. An alias of `Vec<f64>`, or a `Vec<f64>` inside a tuple, an
/// `Option` or a struct, works as well, but its numbers are encoded one by one. (In your own struct, use `serde_bytes`
/// for bytes, and a field of type `Shared<[f64]>` for other numbers.) An array inside another type, or behind an alias,
/// can have at most 32 elements, because serde supports no more. Paths may contain any bytes, also inside other types
/// (serde alone refuses a path that is not UTF-8), except where a type writes the path itself, as `Mutex<PathBuf>` and
/// `#[serde(transparent)]` do. Parameters may be `mut`, patterns, and `_`.
///
/// A caller who wants to keep the data lends it: for the parameter `&[u64]`, `pool.task(sum).by_ref().map(&rows)` takes
/// a `&[u64]` or a `&Vec<u64>` as each input. An argument bound by `partial` is decoded once in each worker if the
/// parameter is a reference, and for each input otherwise. `pool_core::guide` says when to use which.
///
/// ```
/// use pool_core::pool_task;
///
/// #[pool_task]
/// fn label(name: &str, (x, y): (u32, u32), mut body: Vec<u8>) -> Vec<u8> {
///     body.extend(format!("{name} at {x}, {y}").bytes());
///     body
/// }
///
/// assert_eq!(label("tile", (1, 2), b"a ".to_vec()), b"a tile at 1, 2");
/// ```
///
/// # Options
///
/// Each option may be given once, in any order.
///
/// - `name = "…"`: the name that errors show for the task, instead of `crate::module::function`.
/// - `handle = Ident`: the name of the struct; the function stays as it is.
/// - `time_limit = "5s"`: how long an input of this task may run, unless the call sets its own limit: a number with
///   a unit (`ms`, `s`, `m`, `h`), or several, as in `"1m 30s"`. It must be greater than zero. By default, the limit of
///   the pool applies.
/// - `retries = 2`: how many times an input is run again after its worker has died, unless the call sets its own
///   number. By default, the number of the pool applies.
/// - `format = "msgpack"`: sends arguments and the result as MessagePack, a self-describing format. It supports what
///   the default, `"postcard"`, refuses: `#[serde(untagged)]`, `#[serde(tag = "…")]`, `flatten`, `skip_serializing_if`,
///   `serde_json::Value`. It takes more bytes and time, because field names are sent too; and `Some(None)` and
///   `Some(())` arrive as `None`. Blocks and text are the same in both formats.
/// - `crate = path`: the path to `pool_core`, if this crate does not depend on it directly. (The macro
///   detects a renamed dependency by itself.) Users of a library that re-exports `pool_core` write
///   `crate = that_library::pool_core`.
///
/// # Other attributes
///
/// A `#[cfg]` below this attribute applies to everything that it emits. Documentation and
/// `#[deprecated]` go to the struct, lint levels to both the struct and the function, and all other
/// attributes to the function. With `handle`, all of them stay on the function.
///
/// # What cannot be a task
///
/// - a method, or anything else that is not a free function: workers find a task by its name alone;
/// - a function that is generic over types, constants or lifetimes, or that takes or returns
///   `impl Trait`: a task is one function, and its types must be known where it is defined;
/// - an `async`, `unsafe`, `extern` or variadic function;
/// - a function that takes `&mut` (the changes would stay in the worker), a reference to a
///   `dyn Trait`, a reference inside another type such as `Option<&str>`, or a reference with a
///   named lifetime;
/// - a function that returns a reference, or that never returns.
///
/// Each of these is a compile error that says what to write instead, and all mistakes in one
/// function are reported at once. rustc reports a type that cannot be sent, at the type. It also
/// reports a private type in the signature of a `pub` function, since the struct would make it public.
#[proc_macro_attribute]
pub fn pool_task(args: TokenStream, item: TokenStream) -> TokenStream {
    expand_attribute(args.into(), item.into()).into()
}

/// The whole expansion, on the kind of tokens that unit tests can create.
fn expand_attribute(
    args: proc_macro2::TokenStream,
    item: proc_macro2::TokenStream,
) -> proc_macro2::TokenStream {
    let mut errors = errors::Errors::default();
    let options = args::parse(args, &mut errors);
    let function = match parse::function(item.clone()) {
        Ok(function) => function,
        Err(error) => return fallback::item(&item, error),
    };
    if let Some(error) = validate::associated(&function) {
        return fallback::item(&item, error);
    }
    let mut mistakes = errors::Errors::default();
    validate::function(&function, &options, &mut mistakes);
    if mistakes.is_empty() {
        expand::task(&function, &options, errors)
    } else {
        errors.append(mistakes);
        fallback::stub(&function, &options, errors)
    }
}
