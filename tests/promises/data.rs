//! How data reaches tasks: lent, bound beforehand, in blocks.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pool_core::{Error, Pool, pool_task};
use serde::{Deserialize, Deserializer, Serialize};

use crate::support::{Gate, pool, signal, stand, watchdog, works};

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

/// It can't be cloned.
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
    // Others in between.
    works(&pool);
    assert_eq!(all.apply_async(()).get()?, whole);
    Ok(())
}

#[pool_task]
fn scaled_at(by: f64, table: &[f64], at: usize) -> f64 {
    by * table[at]
}

/// Several calls at once, whose bound arguments are long and short.
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

/// How often this process has decoded one.
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
        // Also while another call goes on.
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

/// How many attachments a process has mapped.
fn attachments(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines()
        .filter(|line| line.contains("pool-attachment"))
        .count()
}

fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "in time: {what}");
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
    // The work that it was asked for goes on.
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
        let pids = HashSet::from([first.pid, second.pid]);
        signal(first.pid, libc::SIGKILL);
        first.wait_until_gone();
        second.release();
        for _ in 0..8 {
            gate.accept().release();
        }
        let error = results.get().unwrap_err();
        assert!(matches!(error, Error::WorkerLost(_)), "{error}");
        assert!(pool.worker_pids().iter().any(|pid| !pids.contains(pid)));
    }
    Ok(())
}

#[pool_task]
fn spoil(how: u8) {
    for fd in 3..100 {
        let mut byte = [0_u8; 64];
        if how == 0 {
            // SAFETY: closes what is not ours, and that is the point.
            unsafe { libc::close(fd) };
        } else {
            // SAFETY: reads into the array, and from what is not ours.
            unsafe { libc::recv(fd, byte.as_mut_ptr().cast(), byte.len(), libc::MSG_DONTWAIT) };
        }
    }
}

/// The way on which long ones come is gone: the worker is replaced, and nothing is lost.
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
                for len in [0, 1, 5, 40_000] {
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
