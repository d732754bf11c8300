//! Getting data to workers: the ways there are, what each costs, and which to take.
//!
//! Workers are processes, and see none of this program's memory. Whatever a task reads is sent with it, or shared with the
//! workers, or loaded by them. (This module is a page to read; it has no items.)
//!
//! # Which way to take
//!
//! | what a task reads | take | what it costs |
//! |---|---|---|
//! | something else in each task | [an argument](#arguments) | encoded and copied for each task |
//! | … and this program needs it afterwards | [`by_ref`](#by_ref-arguments-that-are-lent) | the same, but no clone |
//! | the same in all tasks of a call | [`partial`](#partial-what-the-tasks-of-a-call-have-in-common) | encoded once; decoded once in each worker, if the task takes a reference |
//! | the same in several calls, or in several arguments | [`Shared`](#shared-one-value-for-many-calls) | encoded once; decoded once in each worker |
//! | the same numbers, or the same text | either, as `&[f64]`, `&str`, `Shared<[f64]>`, `Shared<str>` | copied once; in memory once, however many workers read it |
//! | what can't be sent: a connection, a cache, a handle | [an initializer](#initializer-what-each-worker-has-for-itself) | made in each worker, and in memory for each |
//! | what is large and not just numbers: a map, an index, a model | [`preload`](#preload-loaded-once-before-there-are-workers) | made once; in memory once, until a worker writes to it |
//! | files | [their names](#files) | what the task reads |
//! | what a library is told by its environment: how many threads to start | [`env`](crate::PoolBuilder::env) | nothing |
//!
//! For some kilobytes an argument is good enough. For more it depends on how many tasks read it, and how long they take: a
//! table of 10 MiB may well be sent with each of ten tasks that run for seconds.
//!
//! # Arguments
//!
//! ```
//! use pool_core::{Error, Pool, pool_task};
//!
//! #[pool_task]
//! fn mean(numbers: &[f64]) -> f64 { numbers.iter().sum::<f64>() / numbers.len() as f64 }
//!
//! # fn main() -> Result<(), Error> {
//! let pool = Pool::with_processes(2)?;
//! assert_eq!(pool.map(mean, [vec![1.0, 3.0], vec![2.0]])?, [2.0, 2.0]);
//! # Ok(())
//! # }
//! ```
//!
//! An argument is encoded here, copied into the worker's shared memory, and decoded there; a result goes the same way back.
//! The argument itself is dropped when it is encoded.
//!
//! Inputs are encoded ahead, so that no worker waits. What is encoded lies in this process until it is sent:
//! [`map`](crate::Pool::map) is some dozens of inputs ahead, or 64 MiB of them where they are large (but at least two for
//! each worker), and the `_async` calls draw all at once. [`imap`](crate::Pool::imap) is `processes * (chunk size + 2)`
//! ahead; with a chunk size of 1 that is the least.
//!
//! ## Numbers travel as blocks
//!
//! `Vec<f64>`, `&[f64]`, `&Vec<f64>`, `Box<[f64]>` and `[f64; 8]` (and those of any other primitive number, `u8` to `u128`,
//! `i8` to `i128`, `usize`, `isize`, `f32`) travel as one block of bytes, not number by number. A worker reads a `&[f64]` and a
//! `&str` where they lie, and makes no copy (but of numbers that are not aligned there, up to 32 KiB); a `&[String]` or a
//! `&Model` it decodes first.
//!
//! The attribute knows these types by how they are *written* in the signature, as a whole parameter or a whole result. What
//! stands inside of another type travels number by number: an alias (`type Row = Vec<f64>`), an `Option<Vec<f64>>`, a tuple, a
//! field of a struct. For these there is
//!
//! - a parameter of its own: `fn f(name: &str, row: &[f64])` instead of `fn f(row: Row)`;
//! - for bytes in a struct, [`serde_bytes`](https://docs.rs/serde_bytes): `#[serde(with = "serde_bytes")] body: Vec<u8>`;
//! - for numbers in a struct, a field of type `Shared<[f64]>`. That is for arguments only: a result can't hold a `Shared`.
//!
//! # `by_ref`: arguments that are lent
//!
//! [`Call::by_ref`](crate::Call::by_ref) gives a call that takes references, and clones nothing. [`ByRef`](crate::ByRef) says
//! which references lend which parameter.
//!
//! ```
//! use pool_core::{Error, Pool, pool_task};
//!
//! #[pool_task]
//! fn count(text: &str, of: char) -> usize { text.matches(of).count() }
//!
//! # fn main() -> Result<(), Error> {
//! let pool = Pool::with_processes(2)?;
//! let texts = vec!["banana".to_owned(), "apple".to_owned()];
//! let inputs = texts.iter().map(|text| (text, &'a'));
//! assert_eq!(pool.task(count).by_ref().starmap(inputs)?, [3, 1]);
//! assert_eq!(texts.len(), 2);
//! # Ok(())
//! # }
//! ```
//!
//! *All* arguments are references then, small ones too: `&'a'` above, and `map(&[1, 2, 3])` where a call by value
//! takes `map(1..4)`. What it saves is the clones; the value is encoded and sent all the same.
//!
//! # `partial`: what the tasks of a call have in common
//!
//! [`Call::partial`](crate::Call::partial) binds the first arguments. They are encoded once, and each worker gets them once: up to
//! 32 KiB over its ring, more as memory that all workers map.
//!
//! ```
//! use std::collections::HashMap;
//! use pool_core::{Error, Pool, pool_task};
//!
//! #[pool_task]
//! fn cost(prices: &HashMap<String, u32>, tax: f64, item: &str) -> Option<f64> {
//!     prices.get(item).map(|price| f64::from(*price) * (1.0 + tax))
//! }
//!
//! # fn main() -> Result<(), Error> {
//! let pool = Pool::with_processes(2)?;
//! let prices = HashMap::from([("tea".to_owned(), 4), ("milk".to_owned(), 2)]);
//! let call = pool.task(cost).by_ref().partial((&prices, &0.5));
//! assert_eq!(call.map(["milk", "tea", "ink"])?, [Some(3.0), Some(6.0), None]);
//! # Ok(())
//! # }
//! ```
//!
//! After [`by_value`](crate::ByRef::by_value) the inputs are given away again: `….partial((&table,)).by_value().map(0..100)`.
//!
//! Take it by reference in the task (`&HashMap`, not `HashMap`): a parameter that is a reference is decoded once in each
//! worker and kept, one that is not is decoded for each task. `&[f64]` and `&str` are not decoded at all.
//!
//! The memory is given back when the call, its copies, and the work that it was asked for are gone. A call that is made anew
//! encodes and sends anew: keep it, or use `Shared`.
//!
//! # `Shared`: one value for many calls
//!
//! A [`Shared`](crate::Shared) is a handle to a value in shared memory, and an argument like any other: bound or not, in
//! structs and vectors, for several tasks and several pools. Each worker maps the memory when the first task needs it.
//!
//! ```
//! use pool_core::{Error, Pool, Shared, pool_task};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Window {
//!     signal: Shared<[f32]>,
//!     from: usize,
//!     len: usize,
//! }
//!
//! #[pool_task]
//! fn peak(window: Window) -> f32 {
//!     let part = &window.signal[window.from..][..window.len];
//!     part.iter().copied().fold(0.0, f32::max)
//! }
//!
//! # fn main() -> Result<(), Error> {
//! let pool = Pool::with_processes(2)?;
//! let signal = Shared::copy_from(&[0.0, 0.5, 0.25, 1.0][..])?;
//! let windows = [0, 2].map(|from| Window { signal: signal.clone(), from, len: 2 });
//! assert_eq!(pool.map(peak, windows)?, [0.5, 1.0]);
//! # Ok(())
//! # }
//! ```
//!
//! [`Shared::copy_from`](crate::Shared::copy_from) is for slices of numbers and for text, and copies them once. This program reads
//! them there too, so it may drop the original. [`Shared::new`](crate::Shared::new) is for any other type; each worker decodes
//! it once, and has a value of its own from then on: it saves time, but not memory. Where each worker's copy is too much, take
//! `preload`.
//!
//! # `initializer`: what each worker has for itself
//!
//! [`PoolBuilder::initializer`](crate::PoolBuilder::initializer) names a task that every worker runs before its first input, and
//! what it leaves in a `static` is there for the tasks. It is the way for what can't be sent: connections, handles of C libraries,
//! buffers, random number generators.
//!
//! ```
//! use std::sync::OnceLock;
//! use pool_core::{Error, Pool, pool_task};
//!
//! static WORDS: OnceLock<Vec<String>> = OnceLock::new();
//!
//! #[pool_task]
//! fn load(text: &str) {
//!     WORDS.set(text.split(' ').map(str::to_owned).collect()).expect("this runs once");
//! }
//!
//! #[pool_task]
//! fn is_known(word: &str) -> bool {
//!     WORDS.get().expect("load ran first").iter().any(|known| known == word)
//! }
//!
//! # fn main() -> Result<(), Error> {
//! let pool = Pool::builder().processes(2).initializer(load, ("tea milk".to_owned(),)).build()?;
//! assert_eq!(pool.task(is_known).by_ref().map(["tea", "ink"])?, [true, false]);
//! # Ok(())
//! # }
//! ```
//!
//! Every worker pays for it, in time and in memory, and so does every worker that replaces another. Its arguments lie in shared
//! memory as long as the pool lives, for those that come later; so give it the name of a file rather than what is in it. A
//! `Shared` may be among them. Its counterpart is a [`finalizer`](crate::PoolBuilder::finalizer), which runs when a worker leaves.
//!
//! # `preload`: loaded once, before there are workers
//!
//! [`PoolBuilder::preload`](crate::PoolBuilder::preload) takes a task, too, and tasks read the `static` in the same way: with
//! `.preload(load, …)` the example above does the same. But one process runs the task, and then forks the workers. They share what it
//! has loaded, whatever it is made of, until they write to it; and a worker that replaces another has it at once.
//!
//! A fork has its rules: threads, open files and random number generators need care. They are listed
//! [there](crate::PoolBuilder::preload). A reference count is a write: tasks that clone an `Arc` out of what was
//! preloaded copy the page that it is on. The arguments can't hold a `Shared`, and this program keeps them as
//! long as the pool lives.
//!
//! # Files
//!
//! Workers start in the directory of this program and see the same files. For work on files, send their names, so that the
//! reading is spread over the workers, too: `&Path`, which need not be UTF-8. A file that all of them map (with a crate such as
//! `memmap2`) is in memory once, however many map it.
//!
//! # Which types
//!
//! Whatever implements `Serialize` and `DeserializeOwned` of serde can be sent. The usual format is
//! [postcard](https://docs.rs/postcard): values one after the other, and nothing that says what they are. Types that have to
//! ask what comes next are refused, with an error that says so: `#[serde(untagged)]`, `#[serde(tag = "…")]`, `flatten`,
//! `skip_serializing_if`, `serde_json::Value`.
//!
//! For these the task says `format = "msgpack"`:
//!
//! ```
//! use std::collections::BTreeMap;
//! use pool_core::{Error, Pool, pool_task};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, PartialEq, Serialize, Deserialize)]
//! #[serde(tag = "kind")]
//! enum Shape {
//!     Circle { radius: f64 },
//!     Other { #[serde(flatten)] sizes: BTreeMap<String, f64> },
//! }
//!
//! #[pool_task(format = "msgpack")]
//! fn double(shape: Shape) -> Shape {
//!     match shape {
//!         Shape::Circle { radius } => Shape::Circle { radius: 2.0 * radius },
//!         Shape::Other { mut sizes } => {
//!             sizes.values_mut().for_each(|size| *size *= 2.0);
//!             Shape::Other { sizes }
//!         }
//!     }
//! }
//!
//! # fn main() -> Result<(), Error> {
//! let pool = Pool::with_processes(2)?;
//! let other = |size| Shape::Other { sizes: [("width".to_owned(), size)].into() };
//! let results = pool.map(double, [Shape::Circle { radius: 1.0 }, other(2.0)])?;
//! assert_eq!(results, [Shape::Circle { radius: 2.0 }, other(4.0)]);
//! # Ok(())
//! # }
//! ```
//!
//! Its arguments and its result go as [MessagePack](https://msgpack.org) then, with the names of fields and variants in each
//! value. That takes more bytes and more time (see [below](#what-it-costs)), and two things it can't tell apart: `Some(None)` of an
//! `Option<Option<T>>`, and `Some(())`, arrive as `None`. Blocks of numbers and text are the same in both formats.
//!
//! What is nested deeper than some thousand levels, such as a long linked list, needs more
//! [`decode_stack`](crate::PoolBuilder::decode_stack).
//!
//! # What it costs
//!
//! Measured in November 2026, with two workers on one small virtual machine: two CPUs of a Xeon under Linux 6.18, which others used
//! at the same time. Each time is the best of at least five runs, in a release build. They are good for comparing one way with another, and for
//! nothing else; differences below a third mean nothing. The memory is the most that this process and its workers took in addition while the work went on: their PSS
//! (`/proc/<pid>/smaps_rollup`), in which a page that several processes map counts once.
//!
//! A table of 10 MiB (`Vec<f64>`), of which 1000 tasks read one number of each page:
//!
//! | | time | memory |
//! |---|---|---|
//! | sent with each task, `by_ref().starmap` | 3200 ms | 61 MiB |
//! | sent with each task, `by_ref().istarmap` | 4300 ms | 190 MiB |
//! | `partial((&table,))`, `table: &[f64]` | 34 ms | 20 MiB |
//! | `Shared::copy_from`, made for the call | 23 ms | 10 MiB |
//! | an initializer that keeps it, the start of the pool included | 69 ms | 21 MiB |
//!
//! A `HashMap` of a million words, in which 1000 tasks look one up:
//!
//! | | time | memory |
//! |---|---|---|
//! | sent with each task, but of 4 tasks | 1800 ms | 150 MiB |
//! | `partial((&model,))`, `model: Model`, but of 4 tasks | 1600 ms | 120 MiB |
//! | `partial((&model,))`, `model: &Model` | 730 ms | 260 MiB |
//! | … the same call, a second time | 0.5 ms | |
//! | `Shared::new` | 940 ms | 250 MiB |
//! | made by an initializer, the start of the pool included | 610 ms | 190 MiB |
//! | … of 8 workers | 2600 ms | 770 MiB |
//! | made by `preload`, the start of the pool included | 470 ms | 97 MiB |
//! | … of 8 workers | 490 ms | 98 MiB |
//!
//! Others:
//!
//! | | time |
//! |---|---|
//! | a million strings of 50 bytes, `by_ref().map(&texts)` | 117 ms |
//! | … `map(texts.iter().cloned())` | 109 ms |
//! | … `map(texts.clone())`: 80 MiB more memory | 248 ms |
//! | 8 MiB of `f64`, there and back, `Vec<f64>` | 5 ms |
//! | … as an alias | 33 ms |
//! | … in a struct | 38 ms |
//! | 8 MiB of `f64`, there only, `&[f64]` | 5 ms |
//! | … in a `Shared` that was made before | 1 ms |
//! | 8 MiB of bytes, there only, `Vec<u8>` in a struct | 25 ms |
//! | … with `serde_bytes` | 5 ms |
//! | 100 000 records of 5 fields, there and back, 33 bytes each | 35 ms |
//! | … with `format = "msgpack"`, 53 bytes each | 95 ms |
//!
//! So it costs nothing that can be seen to clone such strings one by one, since this process encodes while the workers
//! decode. `by_ref` pays off where values take long to clone, or can't be cloned.
//!
//! A long result comes through the worker's shared memory while it is written, and is put together in what becomes the `Vec`.
//! It is not mapped: for 64 MiB, a mapping would cost 23 ms to write to new shared memory and 6 ms to look at, where the
//! way that it goes costs 18 ms in all; and a `Vec` would have to be copied from the mapping, which is another 42 ms.
//!
//! The example [`shared_data`] compares most of these ways on a table of a size that you choose.
//!
//! [`shared_data`]: https://github.com/pool-rs/pool/blob/main/examples/shared_data.rs
