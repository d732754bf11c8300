//! How data reaches tasks: lent, bound beforehand, in blocks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pool_core::{Error, Pool, Shared, pool_task};
use serde::de::IntoDeserializer;
use serde::de::value::{self, U64Deserializer};
use serde::{Deserialize, Deserializer, Serialize};

use crate::support::{
    Gate, builder, checked, is_sandboxed, pool, signal, stand, watchdog, workers_are_elsewhere,
    works,
};

// ---- by_ref ---------------------------------------------------------------------------------------

#[pool_task]
fn letters(text: &str) -> usize {
    text.len()
}

#[pool_task]
fn owned_letters(text: String) -> usize {
    text.len()
}

#[pool_task]
#[expect(clippy::ptr_arg, reason = "it is what is tested")]
fn vec_letters(text: &String, more: Vec<String>) -> usize {
    text.len() + more.iter().map(String::len).sum::<usize>()
}

#[pool_task]
fn total(numbers: &[f64]) -> f64 {
    numbers.iter().sum()
}

#[pool_task]
fn owned_total(numbers: Vec<u32>) -> u32 {
    numbers.iter().sum()
}

/// A type that can't be cloned.
#[derive(Debug, Serialize, Deserialize)]
struct Point {
    x: i32,
    y: i32,
}

#[pool_task]
fn length(point: &Point) -> i32 {
    point.x.abs() + point.y.abs()
}

#[pool_task]
fn owned_length(point: Point) -> i32 {
    point.x.abs() + point.y.abs()
}

#[pool_task]
fn all_lengths(points: &[Point], scale: i32) -> i32 {
    scale * points.iter().map(|point| point.x + point.y).sum::<i32>()
}

#[pool_task]
fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn points() -> Vec<Point> {
    (0..10).map(|x| Point { x, y: -x }).collect()
}

#[test]
fn what_borrows_is_lent() -> Result<(), Error> {
    let _watchdog = watchdog();
    let pool = pool(2);
    let texts = vec!["a".to_owned(), "bc".to_owned()];
    assert_eq!(pool.task(letters).by_ref().map(&texts)?, [1, 2]);
    assert_eq!(pool.task(letters).by_ref().map(["a", "bc"])?, [1, 2]);
    assert_eq!(pool.task(letters).by_ref().map(["a", "bc"].iter())?, [1, 2]);
    let boxed: Vec<Box<str>> = texts.iter().map(|text| text.as_str().into()).collect();
    assert_eq!(pool.task(letters).by_ref().map(&boxed)?, [1, 2]);
    assert_eq!(pool.task(owned_letters).by_ref().map(&texts)?, [1, 2]);
    assert_eq!(pool.task(owned_letters).by_ref().map(["a", "bc"])?, [1, 2]);
    let call = pool.task(vec_letters).by_ref();
    assert_eq!(call.apply((&texts[0], &texts))?, 4);
    assert_eq!(call.apply(("four", &texts[..]))?, 7);

    let rows = [vec![1.0, 2.0], vec![3.0], vec![]];
    assert_eq!(pool.task(total).by_ref().map(&rows)?, [3.0, 3.0, 0.0]);
    assert_eq!(
        pool.task(total).by_ref().map([&[1.0][..], &[]])?,
        [1.0, 0.0]
    );
    assert_eq!(pool.task(total).by_ref().map(&[[1.0, 2.0]; 2])?, [3.0, 3.0]);
    assert_eq!(
        pool.task(owned_total)
            .by_ref()
            .map(&[vec![1], vec![2, 3]])?,
        [1, 5]
    );

    let points = points();
    assert_eq!(pool.task(length).by_ref().apply((&points[3],))?, 6);
    assert_eq!(pool.task(owned_length).by_ref().apply((&points[3],))?, 6);
    assert_eq!(pool.task(all_lengths).by_ref().apply((&points, &2))?, 0);
    let path = PathBuf::from("/tmp/name");
    assert_eq!(pool.task(name_of).by_ref().map([&path])?, ["name"]);
    assert_eq!(pool.task(name_of).by_ref().map([Path::new("/x")])?, ["x"]);
    Ok(())
}

#[test]
fn every_kind_of_call_takes_references() -> Result<(), Error> {
    let _watchdog = watchdog();
    let pool = pool(2);
    let points = points();
    let lengths: Vec<i32> = (0..10).map(|x| 2 * x).collect();
    let call = pool.task(length).by_ref().chunksize(3).retries(1);
    assert_eq!(call.map(&points)?, lengths);
    assert_eq!(call.map_async(&points).get()?, lengths);
    assert_eq!(call.apply_async((&points[2],)).get()?, 4);
    let results: Result<Vec<_>, _> = call.map_results(&points).into_iter().collect();
    assert_eq!(results?, lengths);
    assert_eq!(call.imap(&points).collect::<Result<Vec<_>, _>>()?, lengths);
    let mut unordered = call
        .imap_unordered(&points)
        .collect::<Result<Vec<_>, _>>()?;
    unordered.sort_unstable();
    assert_eq!(unordered, lengths);

    let pairs: Vec<(Vec<Point>, i32)> = (0..4).map(|x| (vec![Point { x, y: 1 }], 2)).collect();
    let expected = [2, 4, 6, 8];
    let call = pool.task(all_lengths).by_ref();
    assert_eq!(call.starmap(&pairs)?, expected);
    let lent = || pairs.iter().map(|(points, scale)| (points, scale));
    assert_eq!(call.starmap(lent())?, expected);
    assert_eq!(call.starmap_async(lent()).get()?, expected);
    assert_eq!(
        call.istarmap(&pairs).collect::<Result<Vec<_>, _>>()?,
        expected
    );
    assert_eq!(call.istarmap_unordered(lent()).count(), 4);
    let results: Result<Vec<_>, _> = call.starmap_results(&pairs).into_iter().collect();
    assert_eq!(results?, expected);
    Ok(())
}

// ---- partial --------------------------------------------------------------------------------------

#[pool_task]
fn join(a: u8, b: &str, c: Vec<u16>, d: (i32, i32), e: &[f32]) -> String {
    format!("{a} {b} {c:?} {d:?} {e:?}")
}

#[test]
fn the_first_arguments_are_bound() -> Result<(), Error> {
    let _watchdog = watchdog();
    let pool = pool(2);
    let whole = "1 two [3] (4, 5) [6.0]";
    let text = || "two".to_owned();
    let none = pool.task(join).partial(());
    assert_eq!(none.apply((1, text(), vec![3], (4, 5), vec![6.0]))?, whole);
    let one = pool.task(join).partial((1,));
    assert_eq!(
        one.starmap([("two".into(), vec![3], (4, 5), vec![6.0])])?,
        [whole]
    );
    let two = one.partial((text(),));
    assert_eq!(two.apply((vec![3], (4, 5), vec![6.0]))?, whole);
    let three = two.clone().by_ref().partial((&[3],));
    assert_eq!(three.starmap([(&(4, 5), &[6.0])])?, [whole]);
    let four = two.partial((vec![3], (4, 5)));
    assert_eq!(four.map([vec![6.0]])?, [whole]);
    assert_eq!(four.map([vec![]])?, ["1 two [3] (4, 5) []"]);
    assert_eq!(four.imap(vec![vec![6.0]; 100]).count(), 100);
    let all = four.partial(((0..1).map(|_| 6.0).collect(),));
    assert_eq!(all.apply(())?, whole);
    assert_eq!(all.starmap(vec![(); 50])?, vec![whole; 50]);
    // Other calls in between.
    works(&pool);
    assert_eq!(all.apply_async(()).get()?, whole);
    Ok(())
}

#[pool_task]
fn scaled_at(by: f64, table: &[f64], at: usize) -> f64 {
    by * table[at]
}

/// Several calls at once, whose bound arguments are long or short.
#[test]
fn calls_with_bound_arguments_do_not_mix() -> Result<(), Error> {
    let _watchdog = watchdog();
    let pool = pool(2);
    let tables: Vec<Vec<f64>> = [3, 50_000, 10, 100_000]
        .iter()
        .map(|len| (0..*len).map(f64::from).collect())
        .collect();
    let results: Vec<_> = (0..40)
        .map(|x| {
            let table = &tables[x % 4];
            let call = pool.task(scaled_at).by_ref().partial((&(x as f64), table));
            (x, call.map_async(&vec![table.len() - 1; 30]))
        })
        .collect();
    for (x, results) in results {
        let last = tables[x % 4].len() as f64 - 1.0;
        assert_eq!(results.get()?, vec![x as f64 * last; 30]);
    }
    Ok(())
}

/// How many models this process has decoded.
static DECODED: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug, Clone, Serialize)]
struct Model(Vec<String>);

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        DECODED.fetch_add(1, Ordering::Relaxed);
        Deserialize::deserialize(from).map(Model)
    }
}

#[pool_task]
fn look_up(model: &Model, at: usize) -> (u32, usize, String) {
    (
        process::id(),
        DECODED.load(Ordering::Relaxed),
        model.0[at].clone(),
    )
}

#[pool_task]
fn take_up(model: Model, at: usize) -> (usize, String) {
    (DECODED.load(Ordering::Relaxed), model.0[at].clone())
}

#[test]
fn what_is_bound_and_lent_is_decoded_once() -> Result<(), Error> {
    let _watchdog = watchdog();
    for len in [10, 10_000] {
        let pool = pool(2);
        let model = Model((0..len).map(|x| format!("entry {x}")).collect());
        let call = pool.task(look_up).by_ref().partial((&model,));
        for (x, (_, decoded, entry)) in call.map(&Vec::from_iter(0..10))?.iter().enumerate() {
            assert_eq!((*decoded, entry), (1, &model.0[x]));
        }
        // Also while another call runs.
        let other = pool.task(look_up).partial((model.clone(),));
        let results: Vec<_> = (0..100)
            .map(|x| {
                if x % 2 == 0 {
                    call.apply_async((&1,))
                } else {
                    other.apply_async((1,))
                }
            })
            .collect();
        for result in results {
            assert!(result.get()?.1 <= 2);
        }
    }
    let pool = pool(1);
    let call = pool.task(take_up).partial((Model(vec!["one".to_owned()]),));
    assert_eq!(
        call.map([0, 0])?,
        [(1, "one".to_owned()), (2, "one".to_owned())]
    );
    Ok(())
}

#[derive(Debug, Serialize, Deserialize)]
struct Refused(#[serde(serialize_with = "refuse")] u8);

fn refuse<S: serde::Serializer>(_: &u8, _: S) -> Result<S::Ok, S::Error> {
    Err(serde::ser::Error::custom("not this one"))
}

#[pool_task]
fn take_refused(_refused: &Refused, _x: u8) {}

#[derive(Debug, Serialize)]
struct OneWay(u8);

impl<'de> Deserialize<'de> for OneWay {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("it does not come back"))
    }
}

#[pool_task]
fn take_one_way(_one: &OneWay, x: u8) -> u8 {
    x
}

#[test]
fn what_can_not_be_bound_is_an_error_of_the_call() -> Result<(), Error> {
    let _watchdog = watchdog();
    let pool = pool(1);
    let call = pool.task(take_refused).partial((Refused(1),));
    let told = |error: Error| {
        assert!(matches!(error, Error::Encode(_)), "{error}");
        assert!(error.to_string().contains("not this one"), "{error}");
        assert!(error.to_string().contains("take_refused"), "{error}");
    };
    told(call.apply((1,)).unwrap_err());
    told(call.map([1]).unwrap_err());
    told(call.apply_async((1,)).get().unwrap_err());
    told(call.map_async([1]).get().unwrap_err());
    told(call.imap([1]).next().unwrap().unwrap_err());
    told(call.clone().partial((1,)).apply(()).unwrap_err());

    let call = pool.task(take_one_way).partial((OneWay(1),));
    for outcome in call.map_results([1, 2]) {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::Decode(_)), "{error}");
        assert!(error.to_string().contains("does not come back"), "{error}");
    }
    works(&pool);
    Ok(())
}

/// Returns how many attachments a process has mapped.
fn attachments(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines()
        .filter(|line| line.contains("pool-attachment"))
        .count()
}

fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[pool_task]
fn stand_with(_table: &[f64], gate: &Path, id: u64) -> u64 {
    stand(gate, id);
    id
}

#[test]
fn what_is_bound_is_freed_when_nobody_needs_it() -> Result<(), Error> {
    if workers_are_elsewhere() {
        return Ok(());
    }
    let _watchdog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let table = vec![1.0; 1 << 20];
    let call = pool.task(stand_with).partial((table, gate.path()));
    let results = call.map_async(0..2);
    let held = [gate.accept(), gate.accept()];
    for pid in pool.worker_pids() {
        assert_eq!(attachments(pid), 1);
    }
    drop(call);
    // The worker continues its work.
    assert_eq!(
        pool.worker_pids()
            .into_iter()
            .map(attachments)
            .sum::<usize>(),
        2
    );
    held.into_iter().for_each(|held| held.release());
    assert_eq!(results.get()?, [0, 1]);
    eventually("the workers let go of it", || {
        pool.worker_pids()
            .into_iter()
            .all(|pid| attachments(pid) == 0)
    });
    Ok(())
}

#[test]
fn workers_that_take_over_get_what_is_bound() -> Result<(), Error> {
    let _watchdog = watchdog();
    for len in [10, 100_000] {
        let pool = pool(2);
        let gate = Gate::new();
        let table: Vec<f64> = (0..len).map(f64::from).collect();
        let call = pool
            .task(stand_with)
            .by_ref()
            .partial((&table, &gate.path()));
        let ids: Vec<u64> = (0..10).collect();
        let results = call.chunksize(1).map_async(&ids);
        let first = gate.accept();
        let second = gate.accept();
        signal(first.pid, libc::SIGKILL);
        first.wait_until_gone();
        // The next caller can't be in the second worker, which is held.
        gate.accept().release();
        second.release();
        for _ in 0..7 {
            gate.accept().release();
        }
        let error = results.get().unwrap_err();
        assert!(matches!(error, Error::WorkerLost(_)), "{error}");
    }
    Ok(())
}

#[pool_task]
fn spoil(how: u8) {
    for fd in 3..100 {
        let mut byte = [0_u8; 64];
        if how == 0 {
            // SAFETY: closes a descriptor that is not ours, as intended.
            unsafe { libc::close(fd) };
        } else {
            // SAFETY: reads into the array, from a descriptor that is not ours.
            unsafe { libc::recv(fd, byte.as_mut_ptr().cast(), byte.len(), libc::MSG_DONTWAIT) };
        }
    }
}

/// The socket for long attachments is gone: the worker is replaced, and nothing is lost.
#[test]
fn a_task_that_closes_everything_keeps_nobody_from_what_is_bound() -> Result<(), Error> {
    let _watchdog = watchdog();
    for how in [0, 1] {
        let pool = pool(2);
        for _ in 0..5 {
            pool.map(spoil, [how; 4])?;
            let table: Vec<f64> = (0..100_000).map(f64::from).collect();
            let call = pool.task(scaled_at).partial((2.0, table));
            let expected: Vec<f64> = (0..100).map(|x| 2.0 * f64::from(x)).collect();
            assert_eq!(call.map(0..100)?, expected);
        }
    }
    Ok(())
}

#[test]
fn very_many_long_ones_at_once() -> Result<(), Error> {
    let _watchdog = watchdog();
    let pool = pool(2);
    let results: Vec<_> = (0..600)
        .map(|x| {
            let call = pool
                .task(scaled_at)
                .partial((f64::from(x), vec![1.0; 5000]));
            call.apply_async((7,))
        })
        .collect();
    for (x, result) in (0..).zip(results) {
        assert_eq!(result.get()?, f64::from(x));
    }
    works(&pool);
    Ok(())
}

// ---- blocks ---------------------------------------------------------------------------------------

macro_rules! blocks {
    ($($name:ident: $number:ty,)*) => {$(
        mod $name {
            use super::*;

            #[pool_task]
            #[expect(clippy::ptr_arg, reason = "it is what is tested")]
            fn middle(
                first: u8,
                a: Vec<$number>,
                b: &[$number],
                c: Box<[$number]>,
                d: [$number; 3],
                e: &[$number; 2],
                f: &Vec<$number>,
            ) -> Vec<$number> {
                assert_eq!(first, 7);
                [&a[..], b, &c, &d, e, f].concat()
            }

            #[pool_task]
            fn last(_shift: &str, numbers: &[$number]) -> Box<[$number]> {
                assert!(numbers.as_ptr().is_aligned());
                numbers.iter().rev().copied().collect()
            }

            #[pool_task]
            fn echo(numbers: Vec<$number>) -> Vec<$number> {
                numbers
            }

            #[pool_task]
            fn fill(number: $number) -> [$number; 1000] {
                [number; 1000]
            }

            pub(super) fn check(pool: &Pool) -> Result<(), Error> {
                let numbers = |len: usize| (0..len).map(|x| (x % 100) as $number).collect::<Vec<_>>();
                for len in [0, 1, 5, 40_000 / size_of::<$number>()] {
                    let block = numbers(len);
                    let boxed = block.clone().into_boxed_slice();
                    let d = [1 as $number, 2 as $number, 3 as $number];
                    let e = [4 as $number, 5 as $number];
                    let whole = [&block[..], &block, &boxed, &d, &e, &block].concat();
                    let lent = (&7, &block, &block, &boxed, &d, &e, &block);
                    assert_eq!(pool.task(middle).by_ref().apply(lent)?, whole);
                    let args = (7, block.clone(), block.clone(), boxed, d, e, block.clone());
                    assert_eq!(pool.apply(middle, args)?, whole);

                    let reversed: Vec<$number> = block.iter().rev().copied().collect();
                    for shift in ["", "a", "abcdefg"] {
                        let args = (shift.to_owned(), block.clone());
                        assert_eq!(&*pool.apply(last, args)?, reversed);
                        let lent = pool.task(last).by_ref().apply((shift, &block))?;
                        assert_eq!(&*lent, reversed);
                        let bound = pool.task(last).by_ref().partial((shift,));
                        assert_eq!(&*bound.map([&block])?[0], reversed);
                        let bound = bound.partial((&block,));
                        assert_eq!(&*bound.apply(())?, reversed);
                    }
                    assert_eq!(pool.apply(echo, (block.clone(),))?, block);
                    assert_eq!(pool.map(echo, vec![block.clone(); 3])?, vec![block.clone(); 3]);
                }
                assert_eq!(pool.apply(fill, (3 as $number,))?, [3 as $number; 1000]);
                Ok(())
            }
        }
    )*
        #[test]
        fn numbers_travel_as_blocks() -> Result<(), Error> {
            let _watchdog = watchdog();
            let pool = pool(2);
            $($name::check(&pool)?;)*
            Ok(())
        }
    };
}

blocks! {
    bytes: u8,
    shorts: u16,
    words: u32,
    longs: u64,
    huge: u128,
    sizes: usize,
    signed_bytes: i8,
    signed_shorts: i16,
    signed_words: i32,
    signed_longs: i64,
    signed_huge: i128,
    signed_sizes: isize,
    singles: f32,
    doubles: f64,
}

// ---- Shared ---------------------------------------------------------------------------------------

#[derive(Debug, Serialize, Deserialize)]
struct Query {
    table: Shared<[f64]>,
    names: Shared<str>,
    models: Vec<Shared<Model>>,
    at: usize,
}

#[pool_task]
fn ask(query: Query, bytes: &Shared<[u8]>) -> (f64, char, String, u8) {
    let Query { at, .. } = query;
    (
        query.table[at],
        char::from(query.names.as_bytes()[at]),
        query.models.iter().map(|model| &*model.0[at]).collect(),
        bytes[at],
    )
}

fn model(name: &str, len: usize) -> Model {
    Model((0..len).map(|x| format!("{name}{x}")).collect())
}

#[test]
fn shared_values_stand_anywhere_in_arguments() -> Result<(), Error> {
    let _watchdog = watchdog();
    // In the ring, and in memory of its own.
    for len in [10, 50_000] {
        let pool = pool(2);
        let numbers: Vec<f64> = (0..len).map(|x| x as f64).collect();
        let table = Shared::copy_from(&numbers[..])?;
        let text: String = ('a'..='z').cycle().take(len).collect();
        let names = Shared::copy_from(&*text)?;
        let bytes: Shared<[u8]> = Shared::copy_from(&vec![7; len][..])?;
        let models = vec![Shared::new(model("a", len))?, Shared::new(model("b", len))?];
        assert_eq!(
            (&*table, &*names, models[1].0.len()),
            (&numbers[..], &*text, len)
        );
        let query = |at| Query {
            table: table.clone(),
            names: names.clone(),
            models: models.clone(),
            at,
        };
        let expected = |at: usize| {
            let letter = char::from(text.as_bytes()[at]);
            (at as f64, letter, format!("a{at}b{at}"), 7)
        };
        let inputs = (0..10).map(|at| (query(at), bytes.clone()));
        let results = pool.starmap(ask, inputs)?;
        assert_eq!(results, (0..10).map(expected).collect::<Vec<_>>());
        let call = pool.task(ask).by_ref().partial((&query(3),));
        assert_eq!(call.map([&bytes])?, [expected(3)]);
        assert_eq!(
            pool.task(ask).by_ref().apply((&query(4), &bytes))?,
            expected(4)
        );
        let bound = pool.task(ask).partial((query(5), bytes.clone()));
        assert_eq!(bound.apply_async(()).get()?, expected(5));
        let items = pool.istarmap(ask, (0..5).map(|at| (query(at), bytes.clone())));
        assert_eq!(items.count(), 5);
    }
    Ok(())
}

#[pool_task]
fn look_into(model: Shared<Model>, at: usize) -> (usize, String) {
    (DECODED.load(Ordering::Relaxed), model.0[at].clone())
}

#[test]
fn a_shared_value_is_decoded_once_in_each_worker() -> Result<(), Error> {
    let _watchdog = watchdog();
    for len in [10, 10_000] {
        let pool = pool(2);
        let shared = Shared::new(model("x", len))?;
        for round in 0..3 {
            let inputs = (0..10).map(|at| (shared.clone(), at));
            for (at, (decoded, entry)) in pool.starmap(look_into, inputs)?.iter().enumerate() {
                assert_eq!((*decoded, &**entry), (1, &*format!("x{at}")), "{round}");
            }
        }
    }
    Ok(())
}

type Tables = (Shared<[u32]>, Vec<Shared<Model>>);

static TABLE: OnceLock<Tables> = OnceLock::new();

#[pool_task]
fn keep_table(table: Shared<[u32]>, models: Vec<Shared<Model>>) {
    assert!(TABLE.set((table, models)).is_ok());
}

#[pool_task]
fn read_table(at: usize) -> (u32, String) {
    let (table, models) = TABLE.get().expect("the initializer ran");
    (table[at], models[at % models.len()].0[0].clone())
}

#[test]
fn an_initializer_takes_shared_values() -> Result<(), Error> {
    let _watchdog = watchdog();
    for (len, models) in [(10, 1), (100_000, 1), (100, 40)] {
        let table = Shared::copy_from(&Vec::from_iter(0..len)[..])?;
        // Altogether more than fits into a ring.
        let models = (0..models).map(|x| Shared::new(model(&format!("{x}-"), 2000)));
        let models: Vec<Shared<Model>> = models.collect::<Result<_, _>>()?;
        let count = models.len();
        let built = builder()
            .processes(2)
            .max_tasks_per_child(5)
            .initializer(keep_table, (table, models))
            .build();
        let pool = checked(built);
        // Also in workers that start later.
        for (at, (number, entry)) in pool.map(read_table, 0..10)?.into_iter().enumerate() {
            assert_eq!((number, entry), (at as u32, format!("{}-0", at % count)));
        }
        let results = pool.map(read_table, vec![9; 40])?;
        assert_eq!(results, vec![(9, format!("{}-0", 9 % count)); 40]);
    }
    Ok(())
}

#[pool_task]
fn stand_with_shared(_table: &Shared<[f64]>, gate: &Path, id: u64) -> u64 {
    stand(gate, id);
    id
}

#[test]
fn a_shared_value_is_freed_with_its_last_handle_and_task() -> Result<(), Error> {
    let _watchdog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let table = Shared::copy_from(&vec![1.0; 1 << 20][..])?;
    // Other tests share something meanwhile.
    let address = format!("{:x}-", table.as_ptr().addr());
    let is_mapped = || {
        let maps = fs::read_to_string("/proc/self/maps").expect("it is there");
        let mut lines = maps.lines().filter(|line| line.contains("pool-attachment"));
        lines.any(|line| line.starts_with(&address))
    };
    let copy = table.clone();
    assert!(is_mapped());
    let inputs = (0..3).map(|id| (table.clone(), gate.path(), id));
    let results = pool
        .task(stand_with_shared)
        .chunksize(1)
        .starmap_async(inputs);
    let held = [gate.accept(), gate.accept()];
    drop(table);
    assert_eq!(copy[7], 1.0);
    drop(copy);
    assert!(!is_mapped());
    // The third task still has it.
    held.into_iter().for_each(|held| held.release());
    let third = gate.accept();
    assert_eq!(attachments(third.pid), 1);
    third.release();
    assert_eq!(results.get()?, [0, 1, 2]);
    eventually("the workers let go of it", || {
        pool.worker_pids()
            .into_iter()
            .all(|pid| attachments(pid) == 0)
    });
    Ok(())
}

#[pool_task]
fn write_to(table: Shared<[f64]>) {
    // SAFETY: there is nothing safe about it: it kills the process.
    unsafe { table.as_ptr().cast_mut().write_volatile(1.0) };
}

#[pool_task]
fn sum_shared(table: Shared<[f64]>) -> f64 {
    table.iter().sum()
}

#[test]
fn whoever_writes_to_a_shared_value_dies_alone() -> Result<(), Error> {
    let _watchdog = watchdog();
    let pool = pool(2);
    let table = Shared::copy_from(&vec![1.0; 10_000][..])?;
    let call = pool.task(sum_shared).by_ref();
    assert_eq!(call.map([&table])?, [10_000.0]);
    match pool.apply(write_to, (table.clone(),)) {
        Err(Error::WorkerLost(lost)) => assert_eq!(lost.signal(), Some("SIGSEGV")),
        other => panic!("{other:?}"),
    }
    assert_eq!(call.map(vec![&table; 20])?, [10_000.0; 20]);
    assert_eq!(table.iter().sum::<f64>(), 10_000.0);
    Ok(())
}

#[pool_task]
fn give_back(table: Shared<[f64]>) -> Shared<[f64]> {
    table
}

#[pool_task]
fn sum_below(table: Shared<[f64]>, model: Shared<Model>) -> (f64, String) {
    let pool = Pool::with_processes(1).expect("a pool in a task");
    let sum = pool
        .apply(sum_shared, (table,))
        .expect("it works there, too");
    (
        sum,
        pool.apply(look_into, (model, 0)).expect("this as well").1,
    )
}

#[test]
fn a_shared_value_travels_to_workers_only() -> Result<(), Error> {
    let _watchdog = watchdog();
    let pool = pool(1);
    for len in [10, 10_000] {
        let table = Shared::copy_from(&vec![1.0; len][..])?;
        let error = pool.apply(give_back, (table.clone(),)).unwrap_err();
        assert!(matches!(error, Error::Encode(_)), "{error}");
        assert!(
            error
                .to_string()
                .contains("can only be sent to the workers of a pool"),
            "{error}"
        );
        assert!(postcard::to_stdvec(&table).is_err());
        let number: U64Deserializer<value::Error> = 1_u64.into_deserializer();
        let error = Shared::<[f64]>::deserialize(number).unwrap_err();
        assert!(
            error.to_string().contains("was not sent with it"),
            "{error}"
        );
        // The workers of a task's own pool are workers too. (A sandboxed task can't start one.)
        if !is_sandboxed() {
            let result = pool.apply(sum_below, (table, Shared::new(model("n", len))?))?;
            assert_eq!(result, (len as f64, "n0".to_owned()));
        }
    }
    Ok(())
}

#[test]
fn what_can_not_be_encoded_can_not_be_shared() {
    let error = Shared::new(refused::Refused(1)).unwrap_err();
    assert!(matches!(error, Error::Encode(_)), "{error}");
    assert_eq!(
        error.to_string(),
        "`Shared`: can't encode the value: not this one"
    );
}

mod refused {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Serialize, Deserialize)]
    pub(super) struct Refused(#[serde(serialize_with = "super::refuse")] pub(super) u8);
}

#[test]
fn very_many_shared_values_at_once() -> Result<(), Error> {
    let _watchdog = watchdog();
    let pool = pool(2);
    for len in [3, 5000] {
        let tables = (0..500).map(|_| Shared::copy_from(&vec![1.0; len][..]));
        let tables: Vec<_> = tables.collect::<Result<_, _>>()?;
        assert_eq!(
            pool.task(sum_shared).by_ref().map(&tables)?,
            vec![len as f64; 500]
        );
        let results = pool.map_async(sum_shared, tables);
        assert_eq!(results.get()?, vec![len as f64; 500]);
    }
    Ok(())
}

// ---- formats --------------------------------------------------------------------------------------

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(i64),
    Text(String),
    Many(Vec<Untagged>),
    Pair {
        left: Box<Untagged>,
        right: Option<Box<Untagged>>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    Empty,
    Sized { width: u32, height: f32 },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    id: u128,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    note: Option<String>,
    tagged: Tagged,
    value: Untagged,
    #[serde(flatten)]
    rest: BTreeMap<String, Untagged>,
}

fn record(note: Option<&str>) -> Record {
    let pair = |right| Untagged::Pair {
        left: Box::new(Untagged::Text("left".into())),
        right,
    };
    Record {
        id: u128::MAX,
        note: note.map(str::to_owned),
        tagged: Tagged::Sized {
            width: 1,
            height: -0.5,
        },
        value: Untagged::Many(vec![Untagged::Number(-7), pair(None)]),
        rest: [(
            "more".to_owned(),
            pair(Some(Box::new(Untagged::Many(vec![])))),
        )]
        .into(),
    }
}

#[pool_task(format = "msgpack")]
fn turn(record: Record, name: &str, lent: &Record, all: &[Record], block: Vec<f64>) -> Vec<Record> {
    assert_eq!((name, &block[..]), ("name", &[1.0, 2.0][..]));
    [&[record, lent.clone()], all].concat()
}

#[pool_task(format = "msgpack")]
fn tell(tagged: &Tagged) -> Result<String, Untagged> {
    match tagged {
        Tagged::Empty => Err(Untagged::Number(1)),
        tagged => Ok(format!("{tagged:?}")),
    }
}

#[test]
fn a_format_that_describes_itself_carries_any_type() -> Result<(), Error> {
    let _watchdog = watchdog();
    let pool = pool(2);
    let (with, without) = (record(Some("note")), record(None));
    let all = vec![without.clone(), with.clone()];
    let expected = [&[with.clone(), without.clone()], &all[..]].concat();
    let block = vec![1.0, 2.0];
    let args = (
        with.clone(),
        "name".to_owned(),
        without.clone(),
        all.clone(),
        block.clone(),
    );
    assert_eq!(pool.apply(turn, args)?, expected);
    let call = pool.task(turn).by_ref();
    assert_eq!(
        call.apply((&with, "name", &without, &all, &block))?,
        expected
    );
    let call = call.partial((&with, "name", &without));
    assert_eq!(call.starmap([(&all, &block)])?[0], expected);
    assert_eq!(pool.map(tell, [Tagged::Empty])?, [Err(Untagged::Number(1))]);
    assert!(
        pool.apply(
            tell,
            (Tagged::Sized {
                width: 1,
                height: 2.0
            },)
        )?
        .is_ok()
    );
    Ok(())
}

#[pool_task]
fn take_untagged(value: Untagged) -> u8 {
    u8::from(value == Untagged::Number(1))
}

#[pool_task]
fn take_record(record: Record) -> u128 {
    record.id
}

#[pool_task]
fn give_tagged() -> Tagged {
    Tagged::Sized {
        width: 1,
        height: 1.0,
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "of")]
enum Adjacent {
    Number(u32),
}

#[pool_task]
fn take_adjacent(value: Adjacent) -> bool {
    value == Adjacent::Number(1)
}

#[pool_task]
fn take_tagged(value: Tagged) -> bool {
    value == Tagged::Empty
}

/// Each refusal names what can carry the type.
#[test]
fn what_the_usual_format_refuses_names_the_other() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let refusals = [
        pool.apply(take_untagged, (Untagged::Number(1),))
            .unwrap_err(),
        pool.apply(take_record, (record(None),)).unwrap_err(),
        pool.apply(take_record, (record(Some("note")),))
            .unwrap_err(),
        pool.apply(give_tagged, ()).unwrap_err(),
        pool.apply(take_tagged, (Tagged::Empty,)).unwrap_err(),
        pool.apply(take_adjacent, (Adjacent::Number(1),))
            .unwrap_err(),
    ];
    for error in refusals {
        let text = error.to_string();
        assert!(
            text.contains("#[pool_task(format = \"msgpack\")]"),
            "{text}"
        );
    }
}

/// A list that is nested as deep as it is long.
#[derive(Debug, Serialize, Deserialize)]
struct Chain {
    next: Option<Box<Chain>>,
}

impl Chain {
    fn of(levels: usize) -> Chain {
        let mut chain = Chain { next: None };
        for _ in 0..levels {
            let next = Some(Box::new(chain));
            chain = Chain { next };
        }
        chain
    }

    fn levels(mut self) -> usize {
        let mut levels = 0;
        while let Some(next) = self.next.take() {
            self = *next;
            levels += 1;
        }
        levels
    }
}

/// A chain of that length must not be dropped level by level.
impl Drop for Chain {
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(mut chain) = next {
            next = chain.next.take();
        }
    }
}

#[pool_task]
fn make_chain(levels: usize) -> Chain {
    Chain::of(levels)
}

#[pool_task]
fn measure_chain(chain: Chain) -> usize {
    chain.levels()
}

#[pool_task(format = "msgpack")]
fn make_described(levels: usize) -> Chain {
    Chain::of(levels)
}

#[pool_task(format = "msgpack")]
fn measure_described(chain: Chain) -> usize {
    chain.levels()
}

fn with_stack<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(256 << 20);
        let thread = thread.spawn_scoped(scope, work).expect("there is memory");
        thread.join().expect("it has finished")
    })
}

#[test]
fn what_is_nested_too_deep_is_refused_in_both_formats() -> Result<(), Error> {
    let _watchdog = watchdog();
    let pool = pool(1);
    let refused = |error: Error| {
        assert!(matches!(error, Error::Decode(_)), "{error}");
        assert!(error.to_string().contains("nested too deeply"), "{error}");
        assert!(error.to_string().contains("decode_stack"), "{error}");
    };
    // Encoding this needs stack too, here and in the worker.
    with_stack(|| {
        refused(pool.apply(measure_chain, (Chain::of(50_000),)).unwrap_err());
        refused(
            pool.apply(measure_described, (Chain::of(50_000),))
                .unwrap_err(),
        );
    });
    for levels in [100, 8_000] {
        let made = pool.apply(make_chain, (levels,)).map(Chain::levels);
        let described = pool.apply(make_described, (levels,)).map(Chain::levels);
        if levels == 100 {
            assert_eq!((made?, described?), (100, 100));
        } else {
            refused(made.unwrap_err());
            refused(described.unwrap_err());
        }
    }
    let built = builder().processes(1).decode_stack(128 << 20).build();
    let pool = checked(built);
    with_stack(|| {
        let results = [
            pool.apply(make_chain, (8_000,)).map(Chain::levels),
            pool.apply(make_described, (8_000,)).map(Chain::levels),
            pool.apply_async(make_chain, (8_000,))
                .get()
                .map(Chain::levels),
            pool.map(make_chain, [8_000])
                .map(|all| all.into_iter().map(Chain::levels).sum()),
            pool.imap(make_chain, [8_000])
                .map(|one| one.map(Chain::levels))
                .sum(),
        ];
        for levels in results {
            assert_eq!(levels.expect("there is stack"), 8_000);
        }
    });
    Ok(())
}

// ---- corners --------------------------------------------------------------------------------------

#[pool_task]
fn first_and_len(table: &[f64], number: u64, large: &[u8]) -> (u64, usize, f64) {
    assert!(large.iter().all(|byte| u64::from(*byte) == number % 200));
    (number, large.len(), table[0])
}

/// Bound arguments of other calls are freed while inputs arrive in portions.
#[test]
fn inputs_that_come_in_pieces_are_not_cut_by_what_is_freed() -> Result<(), Error> {
    let _watchdog = watchdog();
    let pool = pool(2);
    for round in 0..30_u32 {
        let len = if round % 2 == 0 { 3 } else { 5000 };
        let call = pool
            .task(first_and_len)
            .partial((vec![f64::from(round); len],));
        let inputs = (0..8).map(|number| (number, vec![number as u8; 300_000]));
        let results = call.starmap_async(inputs);
        drop(call);
        for (number, result) in (0..8).zip(results.get()?) {
            assert_eq!(result, (number, 300_000, f64::from(round)));
        }
    }
    Ok(())
}

static NESTED: OnceLock<Shared<Vec<Shared<[u32]>>>> = OnceLock::new();

#[pool_task]
fn keep_nested(nested: Shared<Vec<Shared<[u32]>>>, all: Vec<Shared<[u32]>>) {
    assert!(all.iter().all(|one| one[0] < 20));
    assert!(NESTED.set(nested).is_ok());
}

#[pool_task]
fn sum_nested(from: u32) -> u32 {
    let nested = NESTED.get().expect("the initializer ran");
    from + nested.iter().map(|one| one[0]).sum::<u32>()
}

#[pool_task]
fn sum_given(nested: Shared<Vec<Shared<[u32]>>>) -> u32 {
    nested.iter().map(|one| one[0]).sum()
}

#[pool_task]
fn sum_given_below(nested: Shared<Vec<Shared<[u32]>>>) -> u32 {
    let pool = Pool::with_processes(1).expect("a pool in a task");
    // It numbers its attachments as the parent does.
    let _others: Vec<_> = (0..30).map(|x| Shared::copy_from(&[x; 3][..])).collect();
    pool.apply(sum_given, (nested,))
        .expect("it works there, too")
}

/// Shared values that refer to others; and more of them, some twice.
#[test]
fn shared_values_may_refer_to_others() -> Result<(), Error> {
    let _watchdog = watchdog();
    for len in [3, 20_000] {
        let ones = (0..15).map(|x| Shared::copy_from(&vec![x; len][..]));
        let ones: Vec<Shared<[u32]>> = ones.collect::<Result<_, _>>()?;
        let nested = Shared::new(ones.clone())?;
        let mut all = ones;
        all.push(all[0].clone());
        let built = builder()
            .processes(2)
            .initializer(keep_nested, (nested.clone(), all))
            .build();
        let pool = checked(built);
        assert_eq!(pool.map(sum_nested, [0, 1])?, [105, 106]);
        assert_eq!(pool.apply(sum_given, (nested.clone(),))?, 105);
        let call = pool.task(sum_given).partial((nested.clone(),));
        assert_eq!(call.apply(())?, 105);
        // A sandboxed task can't start a pool.
        if !is_sandboxed() {
            assert_eq!(pool.apply(sum_given_below, (nested,))?, 105);
        }
    }
    Ok(())
}

/// Panics when it is dropped.
#[derive(Debug, Serialize, Deserialize)]
struct Stubborn(u8);

impl Drop for Stubborn {
    fn drop(&mut self) {
        if pool_core::worker::is_worker() {
            panic!("not with me");
        }
    }
}

#[pool_task]
fn look_at_stubborn(stubborn: &Stubborn, x: u8) -> u8 {
    stubborn.0 + x
}

#[test]
fn what_panics_when_it_is_let_go_harms_nobody() -> Result<(), Error> {
    let _watchdog = watchdog();
    let pool = pool(2);
    let pids = pool.worker_pids();
    for _ in 0..20 {
        let call = pool.task(look_at_stubborn).partial((Stubborn(1),));
        assert_eq!(call.map(0..10)?, Vec::from_iter(1..11));
        works(&pool);
    }
    assert_eq!(pool.worker_pids(), pids);
    Ok(())
}

#[test]
fn two_pools_let_go_of_what_both_had() -> Result<(), Error> {
    let _watchdog = watchdog();
    let (one, other, over) = (pool(1), pool(1), pool(1));
    let table = Shared::copy_from(&vec![1.0; 1 << 20][..])?;
    let pools = [&over, &one, &other];
    for pool in pools {
        assert_eq!(
            pool.apply(sum_shared, (table.clone(),))?,
            f64::from(1 << 20)
        );
    }
    over.close();
    over.join()?;
    drop(table);
    for pool in [&one, &other] {
        eventually("the worker lets go of it", || {
            pool.worker_pids()
                .into_iter()
                .all(|pid| attachments(pid) == 0)
        });
    }
    Ok(())
}
