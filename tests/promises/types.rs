//! What tasks may take and return, and where tasks may stand.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsString};
use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pool_core::{Error, Side, Task, pool_task};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Serialize};

use crate::support::{pool, square, watchdog, works};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Order<'a> {
    id: u128,
    name: Cow<'a, str>,
    lines: Vec<Line>,
    note: Option<Box<Line>>,
    paid: Result<f64, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Line {
    Nothing,
    Item(char, i8),
    Named {
        weight: f32,
        tags: BTreeMap<String, Vec<u16>>,
    },
}

fn order() -> Order<'static> {
    let tags = [("a".to_owned(), vec![1, 2]), (String::new(), vec![])];
    Order {
        id: u128::MAX,
        name: "größe".into(),
        lines: vec![
            Line::Nothing,
            Line::Item('ß', -128),
            Line::Named {
                weight: -0.0,
                tags: tags.into(),
            },
        ],
        note: Some(Box::new(Line::Nothing)),
        paid: Err("no money".to_owned()),
    }
}

#[pool_task]
fn return_order(order: Order<'static>) -> Order<'static> {
    order
}

#[pool_task]
fn look_at(line: &Line, lines: &[Line], name: &str) -> (usize, bool) {
    (lines.len() + name.len(), lines.contains(line))
}

#[test]
fn structs_and_enums() {
    let _dog = watchdog();
    let pool = pool(1);
    assert_eq!(pool.apply(return_order, (order(),)).unwrap(), order());
    let many = pool
        .map(return_order, std::iter::repeat_n(order(), 50))
        .unwrap();
    assert!(many.iter().all(|one| *one == order()));
}

#[test]
fn references() {
    let _dog = watchdog();
    let pool = pool(1);
    let lines = order().lines;
    let args = (Line::Nothing, lines, "größe".to_owned());
    assert_eq!(pool.apply(look_at, args).unwrap(), (10, true));
}

#[pool_task]
fn lengths(path: &Path, name: &std::ffi::OsStr, c: &std::ffi::CStr, empty: &str) -> [usize; 4] {
    let path = path.as_os_str().len();
    [path, name.len(), c.to_bytes().len(), empty.len()]
}

#[test]
fn names_of_the_system() {
    let _dog = watchdog();
    let pool = pool(1);
    let args = (
        PathBuf::from("/tmp/x"),
        OsString::from("name"),
        CString::new("c").unwrap(),
        String::new(),
    );
    assert_eq!(pool.apply(lengths, args).unwrap(), [6, 4, 1, 0]);
}

#[pool_task]
fn parse(text: &str) -> Result<i64, String> {
    text.parse()
        .map_err(|error: ParseIntError| error.to_string())
}

#[pool_task]
fn half(x: u64) -> Option<u64> {
    x.is_multiple_of(2).then_some(x / 2)
}

#[test]
fn an_error_of_the_task_is_a_value() {
    let _dog = watchdog();
    let pool = pool(2);
    let texts = ["1", "x", "-3"].map(str::to_owned);
    let results = pool.map(parse, texts).unwrap();
    assert_eq!(results[0], Ok(1));
    assert!(results[1].as_ref().unwrap_err().contains("invalid digit"));
    assert_eq!(results[2], Ok(-3));
    let result = pool.apply_async(parse, ("x".to_owned(),));
    result.wait();
    assert_eq!(result.successful(), Some(true));
    assert_eq!(
        pool.map(half, 0..4).unwrap(),
        [Some(0), None, Some(1), None]
    );
}

#[pool_task]
fn nothing() {}

#[pool_task]
fn unit_to_unit((): ()) {}

#[test]
fn units() {
    let _dog = watchdog();
    let pool = pool(2);
    pool.apply(nothing, ()).unwrap();
    assert_eq!(pool.map(unit_to_unit, [(); 1000]).unwrap().len(), 1000);
    assert_eq!(pool.starmap(nothing, [(); 10]).unwrap(), [(); 10]);
    assert_eq!(pool.imap(unit_to_unit, [(); 10]).count(), 10);
}

#[pool_task]
#[expect(clippy::too_many_arguments, reason = "that is the point")]
fn twelve(
    a: u8,
    b: i16,
    c: u32,
    d: i64,
    e: f32,
    f: f64,
    g: bool,
    h: char,
    i: String,
    j: Vec<u8>,
    k: Option<u8>,
    l: (u8, u8),
) -> String {
    format!("{a} {b} {c} {d} {e} {f} {g} {h} {i} {j:?} {k:?} {l:?}")
}

#[test]
fn many_arguments() {
    let _dog = watchdog();
    let pool = pool(1);
    let args = || {
        let text = "i".to_owned();
        (
            1,
            -2,
            3,
            -4,
            5.5,
            6.25,
            true,
            'h',
            text,
            vec![1, 2],
            Some(3),
            (4, 5),
        )
    };
    let expected = "1 -2 3 -4 5.5 6.25 true h i [1, 2] Some(3) (4, 5)";
    assert_eq!(pool.apply(twelve, args()).unwrap(), expected);
    let results = pool.starmap(twelve, (0..3).map(|_| args())).unwrap();
    assert_eq!(results, [expected; 3]);
}

#[pool_task]
fn patterns(mut list: Vec<u64>, (a, [b, c]): (u64, [u64; 2]), _: bool) -> Vec<u64> {
    list.extend([a, b, c]);
    list
}

#[test]
fn parameters_may_be_patterns() {
    let _dog = watchdog();
    let pool = pool(1);
    let result = pool.apply(patterns, (vec![1], (2, [3, 4]), true));
    assert_eq!(result.unwrap(), [1, 2, 3, 4]);
}

#[pool_task]
fn numbers(values: HashMap<String, f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_values().collect();
    values.sort_by(f64::total_cmp);
    values
}

#[test]
fn numbers_keep_every_bit() {
    let _dog = watchdog();
    let pool = pool(1);
    let values = [
        f64::NAN,
        f64::MIN_POSITIVE / 2.0,
        -0.0,
        f64::INFINITY,
        f64::EPSILON,
    ];
    let map = values
        .iter()
        .map(|value| (value.to_string(), *value))
        .collect();
    let mut expected = values;
    expected.sort_by(f64::total_cmp);
    let back = pool.apply(numbers, (map,)).unwrap();
    let bits = |values: &[f64]| {
        values
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    };
    assert_eq!(bits(&back), bits(&expected));
}

// ---- size -----------------------------------------------------------------------------------------

#[pool_task]
fn flip(mut bytes: Vec<u8>) -> Vec<u8> {
    for byte in &mut bytes {
        *byte = !*byte;
    }
    bytes
}

#[pool_task]
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte)).sum()
}

#[pool_task]
fn produce(length: usize, seed: u8) -> Vec<u8> {
    pattern(length, seed)
}

#[pool_task]
fn echo(text: String) -> String {
    text
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8 ^ seed).collect()
}

/// Sizes around those of frames, buffers and journals.
fn sizes() -> Vec<usize> {
    let edges = [
        1usize << 10,
        1 << 15,
        48 << 10,
        1 << 16,
        1 << 17,
        212_992,
        1 << 20,
    ];
    let mut sizes = vec![0, 1, 2, 100];
    for edge in edges {
        sizes.extend((edge - 40..=edge + 8).step_by(8));
        sizes.extend([edge - 1, edge + 1, edge + 1000]);
    }
    sizes
}

#[test]
fn payloads_of_all_sizes() {
    let _dog = watchdog();
    let pool = pool(2);
    for size in sizes() {
        let bytes = pattern(size, 7);
        let expected: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
        let flipped = pool.apply(flip, (bytes.clone(),)).unwrap();
        assert!(flipped == expected, "{size}");
        let total = bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        assert_eq!(pool.apply(sum, (bytes,)).unwrap(), total, "{size}");
        assert!(
            pool.apply(produce, (size, 9)).unwrap() == pattern(size, 9),
            "{size}"
        );
    }
}

#[test]
fn huge_payloads() {
    let _dog = watchdog();
    let pool = pool(2);
    for size in [(4 << 20) + 3, (32 << 20) - 1] {
        let bytes = pattern(size, 1);
        let flipped = pool.apply(flip, (bytes.clone(),)).unwrap();
        assert!(flipped.iter().zip(&bytes).all(|(new, old)| *new == !*old));
        assert_eq!(flipped.len(), size);
    }
    let text = "ä".repeat(3 << 20);
    assert!(pool.apply(echo, (text.clone(),)).unwrap() == text);
}

#[test]
fn many_large_payloads_at_once() {
    let _dog = watchdog();
    let pool = pool(2);
    let inputs = || (0..40u8).map(|seed| pattern(300_000 + usize::from(seed), seed));
    let check = |results: Vec<Vec<u8>>| {
        assert_eq!(results.len(), 40);
        for (result, input) in results.iter().zip(inputs()) {
            assert!(result.iter().zip(&input).all(|(new, old)| *new == !*old));
            assert_eq!(result.len(), input.len());
        }
    };
    check(pool.map(flip, inputs()).unwrap());
    check(pool.map_async(flip, inputs()).get().unwrap());
    check(pool.imap(flip, inputs()).map(Result::unwrap).collect());
    for size in [1, 5, 40] {
        check(pool.task(flip).chunksize(size).map(inputs()).unwrap());
    }
}

#[test]
fn small_and_large_results_mixed() {
    let _dog = watchdog();
    let pool = pool(2);
    let size = |at: usize| {
        if at.is_multiple_of(10) {
            100_000 + at
        } else {
            at
        }
    };
    for chunksize in [None, Some(1), Some(16), Some(200)] {
        let mut call = pool.task(produce);
        if let Some(chunksize) = chunksize {
            call = call.chunksize(chunksize);
        }
        let results = call
            .starmap((0..200).map(|at| (size(at), at as u8)))
            .unwrap();
        for (at, result) in results.iter().enumerate() {
            assert!(*result == pattern(size(at), at as u8), "{at}");
        }
    }
}

// ---- what can't be sent ---------------------------------------------------------------------------

/// Claims to be nested this deep.
#[derive(Debug)]
struct Abyss {
    depth: usize,
}

#[derive(Debug, Deserialize)]
struct Step {
    #[expect(dead_code, reason = "it never comes to be")]
    next: Option<Box<Step>>,
}

impl Serialize for Abyss {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut steps = to.serialize_tuple(self.depth)?;
        for _ in 0..self.depth {
            steps.serialize_element(&true)?;
        }
        steps.end()
    }
}

impl<'de> Deserialize<'de> for Abyss {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Step::deserialize(from).map(|_| Abyss { depth: 0 })
    }
}

#[pool_task]
fn abyss(depth: usize) -> Abyss {
    Abyss { depth }
}

#[pool_task]
fn fall(_: Abyss) {}

/// No stack overflow kills the thread that asks, or the worker.
#[test]
fn what_is_nested_too_deep_is_an_error_of_its_input() {
    let _dog = watchdog();
    let pool = pool(1);
    let pids = pool.worker_pids();
    let depth = 200_000;
    for (error, side) in [
        (pool.apply(abyss, (depth,)).unwrap_err(), Side::Result),
        (
            pool.apply(fall, (Abyss { depth },)).unwrap_err(),
            Side::Arguments,
        ),
    ] {
        assert!(
            matches!(&error, Error::Decode(codec) if codec.side() == side),
            "{error:?}"
        );
        assert!(error.to_string().contains("nested too deeply"), "{error}");
    }
    works(&pool);
    assert_eq!(pool.worker_pids(), pids);
}

/// Encodes, but does not decode.
#[derive(Debug, Serialize)]
struct OneWay(u8);

impl<'de> Deserialize<'de> for OneWay {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("one way only"))
    }
}

#[pool_task]
fn take_one_way(_: OneWay) {}

#[pool_task]
fn make_one_way(x: u8) -> OneWay {
    OneWay(x)
}

#[track_caller]
fn cannot_decode(error: &Error, side: Side, index: Option<usize>, task: &str) {
    let Error::Decode(codec) = error else {
        panic!("{error:?}");
    };
    assert_eq!((codec.side(), error.index()), (side, index));
    assert!(error.task().unwrap().ends_with(task), "{error}");
    assert!(error.to_string().contains("one way only"), "{error}");
}

#[test]
fn what_cannot_be_decoded_is_an_error_of_its_input() {
    let _dog = watchdog();
    let pool = pool(2);
    let pids = pool.worker_pids();
    let error = pool.apply(take_one_way, (OneWay(1),)).unwrap_err();
    cannot_decode(&error, Side::Arguments, None, "::take_one_way");
    let error = pool.apply(make_one_way, (1,)).unwrap_err();
    cannot_decode(&error, Side::Result, None, "::make_one_way");
    let error = pool.map(make_one_way, 0..10).unwrap_err();
    cannot_decode(&error, Side::Result, Some(0), "::make_one_way");
    for (index, result) in pool.imap(make_one_way, 0..10).enumerate() {
        cannot_decode(
            &result.unwrap_err(),
            Side::Result,
            Some(index),
            "::make_one_way",
        );
    }
    let result = pool.apply_async(make_one_way, (1,));
    assert!(result.wait_timeout(Duration::MAX));
    assert_eq!(result.successful(), Some(false));
    works(&pool);
    assert_eq!(pool.worker_pids(), pids);
}

/// Panics while it is encoded or decoded, in a worker or here.
#[derive(Debug)]
struct Grenade {
    encode: bool,
    decode: bool,
}

impl Serialize for Grenade {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(!self.encode, "while encoding");
        (self.encode, self.decode).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Grenade {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (encode, decode): (bool, bool) = Deserialize::deserialize(deserializer)?;
        assert!(!decode, "while decoding");
        Ok(Grenade { encode, decode })
    }
}

#[pool_task]
fn take_grenade(_: Grenade) -> u8 {
    7
}

#[pool_task]
fn make_grenade(encode: bool, decode: bool) -> Grenade {
    Grenade { encode, decode }
}

#[test]
fn a_panic_in_the_worker_while_encoding_or_decoding() {
    let _dog = watchdog();
    let pool = pool(1);
    let pids = pool.worker_pids();
    let armed = Grenade {
        encode: false,
        decode: true,
    };
    let error = pool.apply(take_grenade, (armed,)).unwrap_err();
    assert!(error.to_string().contains("while decoding"), "{error}");
    let error = pool.apply(make_grenade, (true, false)).unwrap_err();
    assert!(error.to_string().contains("while encoding"), "{error}");
    works(&pool);
    assert_eq!(pool.worker_pids(), pids);
}

#[test]
fn a_panic_in_the_caller_while_encoding_or_decoding() {
    let _dog = watchdog();
    let pool = pool(1);
    let panics = |call: &dyn Fn()| {
        let call = std::panic::AssertUnwindSafe(call);
        assert!(std::panic::catch_unwind(call).is_err());
    };
    let armed = || Grenade {
        encode: true,
        decode: false,
    };
    panics(&|| drop(pool.apply(take_grenade, (armed(),))));
    panics(&|| drop(pool.map(take_grenade, [armed()])));
    panics(&|| drop(pool.apply(make_grenade, (false, true))));
    panics(&|| drop(pool.starmap(make_grenade, [(false, true)])));
    works(&pool);
    pool.close();
    pool.join().unwrap();
}

// ---- where tasks stand ----------------------------------------------------------------------------

/// As a library would define it.
mod library {
    pub(super) mod geometry {
        use pool_core::pool_task;
        use serde::{Deserialize, Serialize};

        #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
        pub(in super::super) struct Point {
            pub(in super::super) x: f64,
            pub(in super::super) y: f64,
        }

        #[pool_task]
        pub(in super::super) fn mirror(point: &Point) -> Point {
            Point {
                x: point.y,
                y: point.x,
            }
        }
    }

    pub(super) mod text {
        #[pool_core::pool_task]
        pub(in super::super) fn mirror(text: &str) -> String {
            text.chars().rev().collect()
        }
    }
}

#[test]
fn tasks_of_one_name_in_two_modules() {
    let _dog = watchdog();
    let pool = pool(1);
    let point = library::geometry::Point { x: 1.0, y: 2.0 };
    let mirrored = library::geometry::Point { x: 2.0, y: 1.0 };
    let result = pool.apply(library::geometry::mirror, (point,));
    assert_eq!(result.unwrap(), mirrored);
    let text = ("abc".to_owned(),);
    assert_eq!(pool.apply(library::text::mirror, text).unwrap(), "cba");
}

fn first(pool: &pool_core::Pool) -> u64 {
    #[pool_task]
    fn twin(x: u64) -> u64 {
        x + 1
    }
    pool.apply(twin, (10,)).unwrap()
}

fn second(pool: &pool_core::Pool) -> u64 {
    #[pool_task]
    fn twin(x: u64) -> u64 {
        x + 2
    }
    pool.apply(twin, (10,)).unwrap()
}

#[test]
fn tasks_of_one_name_in_two_functions() {
    let _dog = watchdog();
    let pool = pool(1);
    assert_eq!((first(&pool), second(&pool)), (11, 12));
    let third = {
        #[pool_task]
        fn twin(x: String) -> String {
            x + "!"
        }
        pool.apply(twin, ("x".to_owned(),)).unwrap()
    };
    assert_eq!(third, "x!");
}

#[pool_task(handle = Cube)]
fn cube(x: u64) -> u64 {
    if x == 13 {
        panic!("not this one");
    }
    x * x * x
}

#[pool_task(name = "shop.checkout")]
fn renamed(x: u64) -> u64 {
    assert!(x != 13, "not this one");
    x
}

#[pool_task(handle = Both, name = "both at once")]
fn both(x: u64) -> u64 {
    x
}

#[test]
fn a_handle_leaves_the_function_alone() {
    let _dog = watchdog();
    let pool = pool(1);
    let cube_of_two = cube(2);
    let cubes: Vec<u64> = [1, 2, 3].into_iter().map(cube).collect();
    assert_eq!(pool.map(Cube, 1..4).unwrap(), cubes);
    assert_eq!(Cube(2), cube_of_two);
    let error = pool.apply(Cube, (13,)).unwrap_err();
    assert!(error.task().unwrap().ends_with("::types::cube"), "{error}");
    let both = pool.apply(Both, (both(3),)).unwrap();
    assert_eq!(both, 3);
}

#[test]
fn a_name_is_shown_in_errors() {
    let _dog = watchdog();
    fn name<T: Task>(_: T) -> &'static str {
        T::NAME
    }
    let pool = pool(1);
    let error = pool.apply(renamed, (13,)).unwrap_err();
    assert_eq!(error.task(), Some("shop.checkout"));
    assert!(error.to_string().contains("shop.checkout"));
    assert_eq!(name(renamed), "shop.checkout");
    assert_eq!(name(Both), "both at once");
    assert!(name(square).ends_with("support::square"));
    assert!(name(library::text::mirror).ends_with("types::library::text::mirror"));
}

#[test]
fn a_task_can_be_called_here() {
    assert_eq!(square(3), 9);
    assert_eq!([1, 2, 3].map(*square), [1, 4, 9]);
    assert_eq!(library::text::mirror("ab"), "ba");
    assert_eq!(sum(&[1, 2, 3]), 6);
}
