//! The attribute `#[pool_task]`.
//!
//! Users reach it as `pool_core::pool_task`; nothing else depends on this crate. The macro writes
//! absolute paths through `pool_core::__private` and knows nothing of how a task is run.
#![forbid(unsafe_code)]

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

/// Makes a task of a function: something that the workers of a pool can run.
///
/// The attribute registers the function under its name, and a unit struct takes its place. The
/// struct is what the methods of a pool take; it can be called like the function, and `*square`
/// is a plain `fn`. Give it a verb for a name, since no variable in scope may bear the same one
/// (`let square = …` would not compile; more on that below):
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
/// Where a unit struct is in scope, its name cannot be given to a variable or to a parameter, it
/// cannot be called in a constant, and a module cannot bear the same name. If one of these hurts,
/// let the struct have a name of its own. (Clippy also takes the call of such a struct for one that
/// has no effect, where it stands as a statement: `warm_up(3);`.) The function is then left as it is:
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
/// Arguments are encoded here and decoded in the worker, and results travel the other way. So
/// every type is to implement `Serialize` and `DeserializeOwned` of serde. A parameter may also be
/// a reference, and then the caller gives what owns the data:
///
/// | parameter | the caller gives | |
/// |---|---|---|
/// | `T` | `T` | |
/// | `&T` | `T` | |
/// | `&str` | `String` | read in place by the worker |
/// | `&[T]` | `Vec<T>` | |
/// | `&[P]` | `Vec<P>` | as one block, read in place by the worker |
/// | `Vec<P>`, `&Vec<P>`, `Box<[P]>`, `[P; N]` | the same, without the `&` | as one block |
/// | `&Path`, `&OsStr`, `&CStr` | `PathBuf`, `OsString`, `CString` | |
/// | `Shared<T>`, `&Shared<T>` | `Shared<T>` | a number; the value is in memory that all workers map |
///
/// `P` is a primitive number: `u8`, `i32`, `f64`, `usize` and so on. As a block they are copied, not encoded one by one (and what is
/// read in place is copied once more in the worker if it is not aligned there, which happens up to 32 KiB); so
/// is a result of type `Vec<P>`, `Box<[P]>` or `[P; N]`, of any length.
///
/// The macro knows these types by how they are written. An alias of `Vec<f64>`, or one inside of a tuple,
/// an `Option` or a struct, works as well, but its numbers go one by one. (In a struct of your own `serde_bytes` helps for bytes,
/// and a field of type `Shared<[f64]>` for other numbers.) An array inside of another type, or behind an alias, has at most
/// 32 elements, as serde has it. A path may have any bytes, wherever it stands (serde by itself refuses one that is not UTF-8), unless
/// a type writes it by itself, as `Mutex<PathBuf>` and `#[serde(transparent)]` do. Parameters may be `mut`, patterns, and `_`.
///
/// A caller who keeps the data lends it: `pool.task(sum).by_ref().map(&rows)` takes a `&[u64]` or a `&Vec<u64>` for the
/// parameter `&[u64]`. What `partial` has bound is decoded once in each worker for a parameter that is a reference, and for each task
/// otherwise. `pool_core::guide` says when to take which way.
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
/// Each may be given once, in any order.
///
/// - `name = "…"`: the name that errors about the task show, instead of
///   `crate::module::function`.
/// - `handle = Ident`: the name of the struct; the function is left as it is.
/// - `time_limit = "5s"`: how long an input of this task may run, unless the call says otherwise: a number with
///   a unit (`ms`, `s`, `m`, `h`), or several, as in `"1m 30s"`.
/// - `retries = 2`: how many times an input is run again after its worker has died, unless the call says
///   otherwise.
/// - `format = "msgpack"`: arguments and the result go in a format that describes itself (MessagePack), which carries types that the
///   usual one (postcard) refuses: `#[serde(untagged)]`, `#[serde(tag = "…")]`, `flatten`, `skip_serializing_if`,
///   `serde_json::Value`. It takes more bytes and time, for the names of fields travel too; and `Some(None)` and
///   `Some(())` arrive as `None`. Blocks and text are the same in both.
/// - `crate = path`: where to find `pool_core`, if it is neither a dependency of this crate nor one
///   under another name; both of these the macro finds out by itself. A library that re-exports
///   `pool_core` has its users write `crate = that_library::pool_core`.
///
/// # Other attributes
///
/// `#[cfg]` below this attribute governs all that it emits. Documentation and `#[deprecated]` go
/// to the struct, lint levels to the struct and to the function, and all others to the function.
/// With `handle`, all of them stay on the function.
///
/// # What cannot be a task
///
/// - a method, or anything else that is not a free function: a task is found by its name alone;
/// - a function that is generic over types, constants or lifetimes, or that takes or returns an
///   `impl Trait`: a task is one function, and its types are known where it is written;
/// - an `async`, `unsafe`, `extern` or variadic function;
/// - one that takes `&mut`, since the changes would stay in the worker, a reference to a
///   `dyn Trait`, a reference inside of another type such as `Option<&str>`, or a reference with a
///   lifetime;
/// - one that returns a reference, or that never returns.
///
/// Each of these is an error that says what to write instead, and all the errors of one function
/// come at once. A type that cannot be sent is reported by rustc, at the type. So is a private type
/// in the signature of a `pub` function, which the struct would make public.
#[proc_macro_attribute]
pub fn pool_task(args: TokenStream, item: TokenStream) -> TokenStream {
    expand_attribute(args.into(), item.into()).into()
}

/// The whole pipeline, on the kind of tokens that unit tests can make.
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
